//! Headings of the help of commands with many flags. Flags that several commands share have theirs where they are defined.

use clap::Command;

/// Commands, headings, and the flags below them. What is not here stands below `Options`.
const HEADINGS: [(&str, &str, &[&str]); 11] = [
    (
        "serve",
        "Network",
        &[
            "listen",
            "http",
            "tls-certificate",
            "tls-key",
            "tls-client-ca",
            "tokens",
            "max-connections",
            "max-connection-age",
            "idle-timeout",
            "grace",
        ],
    ),
    ("serve", "Models", &["model", "model-memory", "model-control"]),
    ("serve", "Work", &["max-batch", "max-delay", "decoders", "open-videos", "decode-isolation", "videos-per-decoder"]),
    ("serve", "Load", &["max-requests", "videos-per-stream", "max-streams", "message-memory", "spool"]),
    ("serve", "Videos by URI", &["allow-uri", "allow-private-addresses"]),
    ("train", "Network", &["init", "depth", "shortcut", "width", "name", "weights-version", "license"]),
    (
        "train",
        "Clips",
        &["preprocessing", "clip-frames", "clip-size", "temporal-stride", "crop", "no-flip", "color-jitter"],
    ),
    (
        "train",
        "Recipe",
        &["epochs", "batch-size", "accumulate", "begin-at", "freeze-norm", "warmup-epochs", "seed", "schedule"],
    ),
    (
        "train",
        "Optimizer",
        &[
            "optimizer",
            "lr",
            "backbone-lr-factor",
            "momentum",
            "dampening",
            "nesterov",
            "weight-decay",
            "milestones",
            "patience",
            "gamma",
        ],
    ),
    ("train", "Several processes", &["rank", "world-size", "master-addr", "master-port"]),
    ("convert", "About the model", &["name", "weights-version", "license", "origin"]),
];

/// The program with headings in its help.
pub(super) fn with_headings(program: Command) -> Command {
    program.mut_subcommands(|command| {
        let name = command.get_name().to_owned();
        let of_command = HEADINGS.iter().filter(|(of, ..)| *of == name);
        let headings: Vec<_> = of_command.map(|(_, heading, flags)| (*heading, *flags)).collect();
        command.mut_args(|argument| {
            let flag = argument.get_long().unwrap_or_default();
            match headings.iter().find(|(_, flags)| flags.contains(&flag)) {
                Some((heading, _)) => argument.help_heading(*heading),
                None => argument,
            }
        })
    })
}
