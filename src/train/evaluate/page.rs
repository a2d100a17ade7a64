//! One page of HTML with all figures, and with the errors from the worst on: what people look at first when a model is not good
//! enough. It needs no other file and no network.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{ClassRow, Paired, Summary};

/// What is on the page.
#[derive(Debug)]
pub struct Page<'a> {
    /// All figures.
    pub summary: &'a Summary,
    /// Errors in all; more than are shown, perhaps.
    pub error_count: usize,
    /// Those that are shown, the worst first.
    pub errors: Vec<ErrorRow>,
    /// A PNG; `None` where videos have several labels.
    pub confusion: Option<Vec<u8>>,
    /// A PNG.
    pub reliability: Option<Vec<u8>>,
}

/// A video that the model got wrong.
#[derive(Debug)]
pub struct ErrorRow {
    /// Name of the video in the dataset.
    pub name: String,
    /// Frames side by side as a PNG; `None` if they can't be had (any more).
    pub frames: Option<Vec<u8>>,
    /// Right classes.
    pub truth: String,
    /// What the right class scores, 0 to 1.
    pub truth_score: Option<f32>,
    /// The best labels, best first.
    pub predicted: Vec<PredictedLabel>,
}

/// What the model says of one label.
#[derive(Debug)]
pub struct PredictedLabel {
    /// Its name.
    pub name: String,
    /// 0 to 1.
    pub score: f32,
    /// Whether the video shows it.
    pub right: bool,
    /// Whether the model says that it does.
    pub given: bool,
}

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#262b33;--faint:#6b7280;--line:#e4e7eb;--paper:#fff;--wrong:#b0201f;--right:#147a3d}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--faint:#9aa3b0;--line:#343a44;--paper:#16191e;--wrong:#f08b8a;--right:#6fcf97}
img.chart{background:#fff;border-radius:6px}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.4rem}p.faint,.faint{color:var(--faint)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,td.text,th.text{text-align:left}
.figures td:nth-child(2){font-weight:600}
.scroll{overflow-x:auto}
img.chart{max-width:100%;height:auto}
article{border-top:1px solid var(--line);padding:1rem 0;display:grid;grid-template-columns:minmax(0,660px) 1fr;gap:1rem}
article img{max-width:100%;height:auto;border-radius:4px}
article ol{margin:.2rem 0;padding-left:1.4rem}.name{overflow-wrap:anywhere}
.wrong{color:var(--wrong);font-weight:600}.right{color:var(--right);font-weight:600}
@media(max-width:800px){article{grid-template-columns:1fr}}
";

impl Page<'_> {
    /// The page as text.
    pub fn html(&self) -> String {
        let summary = self.summary;
        let title = format!("{} on {}", summary.model, summary.data);
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { (summary.model) }
                    p.faint {
                        (summary.which_videos()) " of " (summary.data) ", " (summary.classes.len()) " classes, "
                        (summary.sampling_words())
                    }
                    (figures(summary))
                    @if let Some(comparison) = &summary.comparison {
                        h2 { "Compared with " (comparison.other) }
                        (compared(&comparison.paired))
                    }
                    (self.errors_section())
                    @if let Some(png) = &self.reliability {
                        h2 { "Calibration" }
                        p.faint {
                            "Blue is how often predictions of a score are right. Red: the model is too sure of itself; yellow: not \
                             sure enough. A temperature in the model file mends it (--calibrate)."
                        }
                        (picture(png, "Reliability diagram", "chart"))
                    }
                    h2 { "Classes" }
                    (classes(&summary.classes))
                    @if let Some(png) = &self.confusion {
                        h2 { "Confusion matrix" }
                        (picture(png, "Confusion matrix", "chart"))
                    }
                }
            }
        };
        page.into_string()
    }

    fn errors_section(&self) -> Markup {
        let (shown, all) = (self.errors.len(), self.error_count);
        let order = match self.summary.multi_label {
            true => "those with the highest log loss first",
            false => "the surest ones first",
        };
        html! {
            h2 { "Errors" }
            p.faint {
                @if all == 0 { "There are none." }
                @else if shown < all { "The worst " (shown) " of " (all) ", " (order) "." }
                @else { (all) ", " (order) "." }
            }
            @for error in &self.errors {
                article {
                    @match &error.frames {
                        Some(png) => { (picture(png, &error.name, "frames")) }
                        None => { p.faint { "no frames" } }
                    }
                    div {
                        div { "true: " span.right { (error.truth) } @if let Some(score) = error.truth_score { " " (percent(score.into())) } }
                        div { "predicted:" }
                        ol {
                            @for PredictedLabel { name, score, right, given } in &error.predicted {
                                li class=[given.then_some(if *right { "right" } else { "wrong" })] { (name) " " (percent((*score).into())) }
                            }
                        }
                        div .name.faint { (error.name) }
                    }
                }
            }
        }
    }
}

fn figures(summary: &Summary) -> Markup {
    html! {
        table.figures {
            @for (name, value, what) in summary.figures() {
                tr { td { (name) } td { (value) } td.text.faint { (what) } }
            }
        }
    }
}

fn compared(paired: &Paired) -> Markup {
    html! { p { (paired.to_string()) } }
}

fn classes(rows: &[ClassRow]) -> Markup {
    let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), percent);
    let mut rows: Vec<&ClassRow> = rows.iter().collect();
    // The worst first; those without videos last.
    rows.sort_by(|a, b| {
        let key = |row: &ClassRow| row.f1.filter(|_| row.rates.is_some()).unwrap_or(f64::INFINITY);
        key(a).total_cmp(&key(b))
    });
    html! {
        div.scroll {
            table {
                tr {
                    th { "class" } th { "videos" } th { "top-1" } th { "precision" } th { "recall" } th { "F1" }
                    th { "average precision" } th.text { "mostly taken for" }
                }
                @for row in rows {
                    tr {
                        td { (row.class) }
                        td { (row.rates.map_or(0, |rates| rates.total)) }
                        td { (optional(row.rates.map(|rates| rates.top_1))) }
                        td { (optional(row.precision)) }
                        td { (optional(row.recall)) }
                        td { (optional(row.f1)) }
                        td { (optional(row.average_precision)) }
                        td.text { @if let Some(other) = &row.mostly_taken_for { (other) " (" (row.times) ")" } }
                    }
                }
            }
        }
    }
}

fn picture(png: &[u8], alt: &str, class: &str) -> Markup {
    html! { img class=(class) alt=(alt) src={ "data:image/png;base64," (STANDARD.encode(png)) }; }
}

fn percent(value: f64) -> String {
    format!("{:.1}%", 100.0 * value)
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::summary;
    use super::*;

    #[test]
    fn page_is_one_file_and_names_are_text() {
        let (_, summary) = summary(0);
        let predicted = |name: &str, score: f32, right: bool, given: bool| PredictedLabel {
            name: name.to_owned(),
            score,
            right,
            given,
        };
        let error = ErrorRow {
            name: "<script>alert(1)</script>.mp4".to_owned(),
            frames: Some(vec![1, 2, 3]),
            truth: "bowling & co".to_owned(),
            truth_score: Some(0.25),
            predicted: vec![predicted("tango", 0.75, false, true), predicted("bowling & co", 0.25, true, false)],
        };
        let page = Page {
            summary: &summary,
            error_count: 3,
            errors: vec![error],
            confusion: None,
            reliability: Some(vec![7]),
        };
        let html = page.html();
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;.mp4") && !html.contains("<script>"), "{html}");
        assert!(html.contains("bowling &amp; co") && html.contains("data:image/png;base64,AQID"));
        assert!(html.contains("<li class=\"wrong\">tango 75.0%</li><li>bowling &amp; co 25.0%</li>"), "{html}");
        assert!(
            html.contains("The worst 1 of 3") && html.contains("Calibration") && !html.contains("Confusion matrix")
        );
        assert!(!html.contains("http"), "nothing is fetched");
    }
}
