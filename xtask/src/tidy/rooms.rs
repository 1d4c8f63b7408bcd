//! Rooms and doors between crates: which package may depend on which, and what each must never know.

use super::dependencies::{Kind, manifest};
use super::{Report, Tree};

/// One package of the workspace.
struct Room {
    /// Folder of its manifest, empty for the root package.
    folder: &'static str,
    package: &'static str,
    /// Packages of this workspace it may depend on.
    may_use: &'static [&'static str],
    /// Foreign crates that would let in what the room must never know. Its tests may use them.
    never: &'static [&'static str],
}

/// The doors. Whoever changes the design changes this table with it.
const ROOMS: &[Room] = &[
    // Nouns: no I/O, no clock, no randomness of its own, no runtime.
    Room {
        folder: "model",
        package: "ashlar-model",
        may_use: &[],
        never: &["axum", "hyper", "io-uring", "libc", "openraft", "redb", "tokio"],
    },
    // The NBD protocol for anyone: no volumes, not our errors, no runtime.
    Room {
        folder: "nbd",
        package: "ashlar-nbd",
        may_use: &[],
        never: &["axum", "hyper", "io-uring", "openraft", "redb", "tokio"],
    },
    // Its fuzz targets: a workspace of their own, and nobody uses it.
    Room {
        folder: "nbd/fuzz",
        package: "ashlar-nbd-fuzz",
        may_use: &["ashlar-nbd"],
        never: &["axum", "hyper", "io-uring", "openraft", "redb", "tokio"],
    },
    // A chunk store on one device: no Raft, no peers, no volumes, no runtime.
    Room {
        folder: "store",
        package: "ashlar-store",
        may_use: &["ashlar-model"],
        never: &["axum", "hyper", "openraft", "redb", "tokio"],
    },
    // Its fuzz targets: a workspace of their own, and nobody uses it.
    Room {
        folder: "store/fuzz",
        package: "ashlar-store-fuzz",
        may_use: &["ashlar-store"],
        never: &["axum", "hyper", "openraft", "redb", "tokio"],
    },
    // The metadata service: no data path, no devices.
    Room {
        folder: "raft",
        package: "ashlar-raft",
        may_use: &["ashlar-model"],
        never: &["axum", "hyper", "io-uring", "memmap2"],
    },
    // The daemon composes the rooms. openraft and redb stop at the door of `raft`, mapped files at that of `store`.
    Room {
        folder: "",
        package: "ashlar",
        may_use: &["ashlar-model", "ashlar-nbd", "ashlar-raft", "ashlar-store"],
        never: &["memmap2", "openraft", "redb"],
    },
    // The adversary may use everything, and nobody may use it.
    Room {
        folder: "chaos",
        package: "ashlar-chaos",
        may_use: &["ashlar", "ashlar-model", "ashlar-nbd", "ashlar-raft", "ashlar-store"],
        never: &[],
    },
    // Project tasks: built before anything else, so it knows no room.
    Room { folder: "xtask", package: "xtask", may_use: &[], never: &["axum", "clap", "hyper", "openraft", "tokio"] },
];

/// Compares every manifest with the table. Dev-dependencies on our own rooms count as well: a test that needs a room
/// which the code may not use belongs to a room further out.
pub fn check(tree: &Tree, report: &mut Report) {
    for file in &tree.files {
        let Some(folder) = file.path.strip_suffix("Cargo.toml") else { continue };
        let Some(room) = ROOMS.iter().find(|room| room.folder == folder.trim_end_matches('/')) else {
            report.fail(&file.path, "this package has no row in ROOMS in xtask/src/tidy/rooms.rs");
            continue;
        };
        for dependency in manifest(&file.text) {
            let name = dependency.name.as_str();
            let place = format!("{}:{}", file.path, dependency.line);
            if dependency.kind == Kind::Workspace {
                continue;
            }
            let is_ours = ROOMS.iter().any(|other| other.package == name);
            if is_ours && !room.may_use.contains(&name) {
                report.fail(&place, format!("`{}` must not depend on `{name}` (rooms and doors)", room.package));
            } else if dependency.kind != Kind::Dev && room.never.contains(&name) {
                report.fail(&place, format!("`{}` must never know `{name}`; tests may", room.package));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(path: &str, text: &str) -> usize {
        Report::of(check, &[(path, text)]).failures.len()
    }

    #[test]
    fn allowed_doors_are_open() {
        let text = "[dependencies]\nashlar-model.workspace = true\nserde = { workspace = true }\n";
        assert_eq!(failures("store/Cargo.toml", text), 0);
    }

    #[test]
    fn walls_hold() {
        for (path, dependency) in [
            ("store/Cargo.toml", "ashlar-raft"),
            ("store/Cargo.toml", "tokio"),
            ("raft/Cargo.toml", "ashlar-store"),
            ("nbd/Cargo.toml", "ashlar-model"),
            ("model/Cargo.toml", "tokio"),
            ("Cargo.toml", "ashlar-chaos"),
            ("chaos/Cargo.toml", "xtask"),
        ] {
            let text = format!("[dependencies]\n{dependency}.workspace = true\n");
            assert_eq!(failures(path, &text), 1, "{path} {dependency}");
        }
    }

    #[test]
    fn tests_may_use_foreign_crates_but_no_forbidden_room() {
        assert_eq!(failures("store/Cargo.toml", "[dev-dependencies]\ntokio.workspace = true\n"), 0);
        assert_eq!(failures("store/Cargo.toml", "[dev-dependencies]\nashlar.workspace = true\n"), 1);
    }

    #[test]
    fn a_package_without_a_row_fails() {
        assert_eq!(failures("cellar/Cargo.toml", "[package]\nname = \"cellar\"\n"), 1);
    }
}
