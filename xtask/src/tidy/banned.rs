//! Calls that have no place, each with what to write instead: some nowhere, some not in pure rooms.

use super::source::{code, code_without_tests, lines_naming};
use super::{File, Report, Tree};

/// A name and what takes its place.
struct Banned {
    name: &'static str,
    instead: &'static str,
}

const EVERYWHERE: &[Banned] = &[
    Banned { name: "dbg!", instead: "tracing, or nothing" },
    Banned { name: "todo!", instead: "the code, or an error that says what is not supported" },
    Banned { name: "unimplemented!", instead: "the code, or an error that says what is not supported" },
];

/// A leftover note counts in comments too. In two pieces, or this file would not pass.
const LEFTOVER: &str = concat!("FIX", "ME");

/// What a pure core must not reach: clocks, randomness, files, sockets, threads.
const IMPURE: &[Banned] = &[
    Banned { name: "Instant::now", instead: "time from the event" },
    Banned { name: "SystemTime::now", instead: "time from the event" },
    Banned { name: "thread_rng", instead: "a number from the event" },
    Banned { name: "rand::", instead: "a number from the event" },
    Banned { name: "std::fs", instead: "an effect that the driver carries out" },
    Banned { name: "std::net", instead: "an effect that the driver carries out" },
    Banned { name: "std::os::unix::net", instead: "an effect that the driver carries out" },
    Banned { name: "std::thread", instead: "an effect that the driver carries out" },
    Banned { name: "tokio::", instead: "an effect that the driver carries out" },
];

/// Paths that begin like this are pure: they take events and return effects.
const PURE: &[&str] = &[
    "model/src/",
    "nbd/src/session",
    "raft/src/placement",
    "raft/src/state",
    "src/agent/plan",
    "src/replica",
    "src/volume",
    "src/wire",
    "store/src/",
];

/// Shells inside pure rooms: the device drivers of the store, the one that maps a device, and its doubles for tests.
const SHELLS: &[&str] = &["store/src/device", "store/src/offline/map", "store/src/testing"];

/// What may stand nowhere.
pub fn check_everywhere(tree: &Tree, report: &mut Report) {
    for file in tree.rust() {
        let code = code(&file.text);
        report_names(file, &code, EVERYWHERE, report);
        for (index, _) in file.text.lines().enumerate().filter(|(_, line)| line.contains(LEFTOVER)) {
            report.fail(&place(file, index + 1), format!("{LEFTOVER} is banned, fix it or write an issue"));
        }
    }
}

/// What may not stand in pure rooms, outside their tests.
pub fn check_pure(tree: &Tree, report: &mut Report) {
    for file in tree.rust().filter(|file| is_pure(&file.path) && !file.is_test()) {
        report_names(file, &code_without_tests(&file.text), IMPURE, report);
    }
}

fn report_names(file: &File, code: &str, banned: &[Banned], report: &mut Report) {
    for Banned { name, instead } in banned {
        for line in lines_naming(code, name) {
            report.fail(&place(file, line), format!("`{name}` is banned here, use {instead}"));
        }
    }
}

fn is_pure(path: &str) -> bool {
    let begins = |starts: &[&str]| starts.iter().any(|start| path.starts_with(start));
    begins(PURE) && !begins(SHELLS)
}

fn place(file: &File, line: usize) -> String {
    format!("{}:{line}", file.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_found_in_code_and_their_names_allowed_in_text() {
        for Banned { name, instead } in EVERYWHERE {
            let text =
                format!("fn f() {{\n    {name}(1);\n    // {name}(2) is a word here\n    let x = \"{name}\";\n}}\n");
            let report = Report::of(check_everywhere, &[("a.rs", &text)]);
            assert_eq!(report.failures, [format!("a.rs:2: `{name}` is banned here, use {instead}")]);
        }
        let report = Report::of(check_everywhere, &[("a.rs", &format!("// {LEFTOVER} later"))]);
        assert_eq!(report.failures.len(), 1);
    }

    #[test]
    fn a_pure_room_reads_no_clock_and_opens_no_file() {
        let text = "use std::{fs, io};\nuse tokio::sync;\nfn f() { let now = Instant::now(); }\n";
        for (path, count) in [
            ("src/volume/engine.rs", 3),
            ("store/src/log.rs", 3),
            ("store/src/device/uring.rs", 0),
            ("src/shard/mod.rs", 0),
            ("src/volume/tests.rs", 0),
        ] {
            assert_eq!(Report::of(check_pure, &[(path, text)]).failures.len(), count, "{path}");
        }
    }

    #[test]
    fn test_modules_of_a_pure_room_may_do_what_they_like() {
        let text = "fn f() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert!(Report::of(check_pure, &[("src/wire/mod.rs", text)]).failures.is_empty());
    }
}
