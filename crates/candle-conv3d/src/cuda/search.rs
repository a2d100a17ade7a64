//! Which algorithm a convolution runs by: what was measured to be fastest among those that are right, kept in a file for
//! the next start.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::CudaError;
use super::cudnn::Algorithm;

/// First line of a file of choices.
const HEADER: &str = "candle-conv3d algorithms 1";

/// One convolution on trial.
pub(crate) trait Trial {
    /// Candidates with bias, residual and ReLU in them (`fused`) or not.
    fn algorithms(&mut self, fused: bool) -> Result<Vec<Algorithm>, CudaError>;

    /// Microseconds of a run; an error for an algorithm that does not work here or whose results are wrong.
    fn time(&mut self, algorithm: &Algorithm) -> Result<f32, CudaError>;
}

/// An algorithm and the microseconds it took.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) algorithm: Algorithm,
    pub(crate) micros: f32,
}

/// The fastest algorithm of `layer` but `skip`, or the slowest one if there are no more. Algorithms that are not fused
/// are looked at where there is no fused one, and always if `both`.
pub(crate) fn fastest(layer: &str, trial: &mut dyn Trial, skip: usize, both: bool) -> Result<Choice, CudaError> {
    let (mut choices, mut tried, mut last) = (Vec::new(), 0, "cuDNN knows none".to_owned());
    for fused in [true, false] {
        if !fused && !both && !choices.is_empty() {
            break;
        }
        let algorithms = match trial.algorithms(fused) {
            Ok(algorithms) => algorithms,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        for algorithm in algorithms {
            tried += 1;
            match trial.time(&algorithm) {
                Ok(micros) => choices.push(Choice { algorithm, micros }),
                // Only for want of memory another attempt, with smaller batches, has a chance.
                Err(error) if error.is_out_of_memory() => return Err(error),
                Err(error) => last = error.to_string(),
            }
        }
    }
    choices.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    let chosen = skip.min(choices.len().saturating_sub(1));
    if choices.is_empty() {
        return Err(CudaError::NoAlgorithm { layer: layer.to_owned(), tried, last });
    }
    Ok(choices.swap_remove(chosen))
}

/// Choices of earlier starts on the same GPU, driver and cuDNN, by the signature of the convolution.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    path: Option<PathBuf>,
    choices: BTreeMap<String, Choice>,
}

impl Remembered {
    /// What a file holds; nothing if there is none or it is of no use.
    pub(crate) fn read(path: Option<PathBuf>) -> Self {
        let choices = path.as_deref().map(read).unwrap_or_default();
        Self { path, choices }
    }

    pub(crate) fn get(&self, signature: &str) -> Option<&Choice> {
        self.choices.get(signature)
    }

    pub(crate) fn put(&mut self, signature: String, choice: Choice) {
        self.choices.insert(signature, choice);
    }

    /// Adds the choices to those of the file.
    pub(crate) fn write(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        // Another process may have found others meanwhile.
        let mut choices = read(path);
        choices.extend(self.choices.iter().map(|(signature, choice)| (signature.clone(), choice.clone())));
        let mut text = format!("{HEADER}\n");
        for (signature, Choice { algorithm, micros }) in &choices {
            text.push_str(&format!("{signature} {algorithm} {micros}\n"));
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Nobody reads half a file.
        let temporary = path.with_extension(format!("{}.part", std::process::id()));
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }
}

fn read(path: &Path) -> BTreeMap<String, Choice> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return BTreeMap::new();
    }
    lines.filter_map(parse).collect()
}

fn parse(line: &str) -> Option<(String, Choice)> {
    let mut words = line.split(' ');
    let (signature, algorithm, micros) = (words.next()?, words.next()?, words.next()?);
    let choice = Choice { algorithm: algorithm.parse().ok()?, micros: micros.parse().ok()? };
    words.next().is_none().then(|| (signature.to_owned(), choice))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Algorithms with what their trial says.
    struct Fake {
        fused: Vec<(&'static str, Result<f32, CudaError>)>,
        plain: Vec<(&'static str, Result<f32, CudaError>)>,
        timed: Vec<String>,
    }

    impl Trial for Fake {
        fn algorithms(&mut self, fused: bool) -> Result<Vec<Algorithm>, CudaError> {
            let list = if fused { &self.fused } else { &self.plain };
            Ok(list.iter().map(|(name, _)| name.parse().unwrap()).collect())
        }

        fn time(&mut self, algorithm: &Algorithm) -> Result<f32, CudaError> {
            self.timed.push(algorithm.to_string());
            let all = self.fused.iter().chain(&self.plain);
            let found = all.filter(|(name, _)| *name == algorithm.to_string()).map(|(_, result)| result.clone()).next();
            found.unwrap()
        }
    }

    fn wrong() -> CudaError {
        CudaError::Input("a wrong result".to_owned())
    }

    fn fake() -> Fake {
        let fused = vec![("fused:1", Ok(30.0)), ("fused:2", Err(wrong())), ("fused:3:5=1", Ok(20.0))];
        Fake { fused, plain: vec![("plain:1", Ok(10.0))], timed: Vec::new() }
    }

    fn chosen(trial: &mut Fake, skip: usize, both: bool) -> String {
        fastest("conv1", trial, skip, both).unwrap().algorithm.to_string()
    }

    #[test]
    fn the_fastest_right_algorithm_is_chosen_and_then_the_next() {
        assert_eq!(chosen(&mut fake(), 0, false), "fused:3:5=1");
        assert_eq!(chosen(&mut fake(), 1, false), "fused:1");
        assert_eq!(chosen(&mut fake(), 2, false), "fused:1", "there are no more");
        assert_eq!(chosen(&mut fake(), 0, true), "plain:1");
    }

    #[test]
    fn what_is_not_fused_is_tried_only_where_nothing_else_works() {
        let mut trial = fake();
        assert_eq!(chosen(&mut trial, 0, false), "fused:3:5=1");
        assert!(trial.timed.iter().all(|name| name.starts_with("fused")));
        trial.fused = vec![("fused:2", Err(wrong()))];
        assert_eq!(chosen(&mut trial, 0, false), "plain:1");
    }

    #[test]
    fn a_layer_without_algorithm_is_an_error_that_says_why() {
        let mut trial = Fake { fused: vec![("fused:2", Err(wrong()))], plain: Vec::new(), timed: Vec::new() };
        let error = fastest("layer1.0.conv1", &mut trial, 0, false).unwrap_err();
        let expected = "layer1.0.conv1: none of 1 algorithms can be used; the last one: a wrong result";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn want_of_memory_ends_the_search() {
        let full =
            CudaError::Driver { call: "cuMemAlloc", code: cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY };
        let mut trial = fake();
        trial.fused[0].1 = Err(full);
        assert!(fastest("conv1", &mut trial, 0, false).unwrap_err().is_out_of_memory());
        assert_eq!(trial.timed, ["fused:1"]);
    }

    #[test]
    fn choices_are_remembered_and_those_of_others_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache").join("gpu.algorithms");
        let choice = |name: &str, micros| Choice { algorithm: name.parse().unwrap(), micros };
        let mut first = Remembered::read(Some(path.clone()));
        let mut second = first.clone();
        first.put("a".to_owned(), choice("fused:1:2=3", 1.5));
        second.put("b".to_owned(), choice("plain:7", 2.0));
        first.write().unwrap();
        second.write().unwrap();
        let both = Remembered::read(Some(path.clone()));
        assert_eq!(both.get("a"), Some(&choice("fused:1:2=3", 1.5)));
        assert_eq!(both.get("b"), Some(&choice("plain:7", 2.0)));
        assert_eq!(both.get("c"), None);

        for broken in ["", "other\na fused:1 1\n", "candle-conv3d algorithms 1\na fused 1\nb fused:1\nc fused:1 x\n"] {
            fs::write(&path, broken).unwrap();
            assert!(Remembered::read(Some(path.clone())).choices.is_empty(), "{broken:?}");
        }
    }

    #[test]
    fn without_a_file_nothing_is_kept() {
        let mut remembered = Remembered::read(None);
        remembered.put("a".to_owned(), Choice { algorithm: "fused:1".parse().unwrap(), micros: 1.0 });
        remembered.write().unwrap();
        assert!(remembered.get("a").is_some());
    }
}
