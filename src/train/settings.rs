//! What must stay the same over the processes of a run and when it is resumed: each setting as a text for people, and the texts
//! by which earlier versions meant the same.

use std::collections::BTreeMap;

/// Settings by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, Setting>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    text: String,
    /// What earlier versions wrote.
    earlier: Vec<String>,
}

/// Settings that checkpoints of earlier versions don't have, and what held then.
const ADDED: [(&str, &str); 12] = [
    ("average of weights", "none"),
    ("cached clips of a video", "none"),
    ("class weights", "none"),
    ("cutmix", "0"),
    ("gradient clipping", "none"),
    ("label smoothing", "0"),
    ("loss", "cross entropy"),
    ("metric of the best epoch", "accuracy"),
    ("mixup", "0"),
    ("precision", "f32"),
    ("sampler", "all"),
    ("weights of the data", "none"),
];

impl Settings {
    /// Adds a setting, or changes it.
    pub fn set(&mut self, name: &str, text: impl Into<String>) {
        self.set_with_earlier(name, text, Vec::new());
    }

    /// The same for one that earlier versions wrote otherwise.
    pub fn set_with_earlier(&mut self, name: &str, text: impl Into<String>, earlier: Vec<String>) {
        self.0.insert(name.to_owned(), Setting { text: text.into(), earlier });
    }

    /// The texts by name.
    pub fn texts(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, setting)| (name.clone(), setting.text.clone())).collect()
    }

    /// The first setting that means something else in a checkpoint with the texts `found`: its name, what is found and what is
    /// wanted.
    pub(super) fn difference(&self, found: &BTreeMap<String, String>) -> Option<(String, String, String)> {
        self.0.iter().find_map(|(name, Setting { text, earlier })| {
            let before = || ADDED.iter().find(|(added, _)| added == name).map(|(_, before)| *before);
            let found = found.get(name).map(String::as_str).or_else(before).unwrap_or("not set");
            let is_same = found == text || earlier.iter().any(|earlier| earlier == found);
            (!is_same).then(|| (name.clone(), found.to_owned(), text.clone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
        texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn other_words_for_the_same_are_no_difference() {
        let mut settings = Settings::default();
        settings.set("mixup", "0");
        settings.set_with_earlier("schedule", "constant", vec!["Constant".to_owned()]);
        assert_eq!(settings.difference(&settings.texts()), None);
        assert_eq!(settings.difference(&texts(&[("schedule", "Constant")])), None);
        let other = settings.difference(&texts(&[("schedule", "Cosine { steps: 9 }")]));
        assert_eq!(other, Some(("schedule".to_owned(), "Cosine { steps: 9 }".to_owned(), "constant".to_owned())));
    }

    #[test]
    fn what_a_checkpoint_does_not_know_was_off_then() {
        let mut settings = Settings::default();
        settings.set("mixup", "0.2");
        settings.set("batch size", "8");
        let found = texts(&[("batch size", "8")]);
        assert_eq!(settings.difference(&found), Some(("mixup".to_owned(), "0".to_owned(), "0.2".to_owned())));
        let found = texts(&[("mixup", "0.2")]);
        assert_eq!(
            settings.difference(&found).map(|(name, found, _)| (name, found)),
            Some(("batch size".to_owned(), "not set".to_owned()))
        );
    }
}
