//! House rules that no compiler checks, one function per rule, each over the text of the tree.
//!
//! A check sees a `Tree` in memory and adds to a `Report`; it never opens a file, so its tests are small texts. Files
//! are read once, here. A warning is an aim that was missed; a failure is a rule that was broken.

mod banned;
mod dependencies;
mod length;
mod links;
mod modules;
mod rooms;
mod source;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Folders that are not ours to read: build output, history, a developer's running cluster.
const SKIPPED: &[&str] = &["target", ".git", "ashlar-dev"];

type Check = fn(&Tree, &mut Report);

/// Every rule, by the name its findings carry.
const CHECKS: &[(&str, Check)] = &[
    ("header", length::check_headers),
    ("length", length::check_files),
    ("function", length::check_functions),
    ("banned", banned::check_everywhere),
    ("pure", banned::check_pure),
    ("rooms", rooms::check),
    ("modules", modules::check),
    ("reason", dependencies::check_reasons),
    ("version", dependencies::check_versions),
    ("link", links::check_links),
    ("machine", links::check_machine_paths),
];

/// A text file: its path from the workspace's folder, with `/`, and what is in it.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the whole file is test code, by its place or name.
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.ends_with("tests.rs") || self.path.split('/').any(|folder| folder == "tests" || folder == "benches")
    }
}

/// All text files, and the paths of all files and folders.
#[derive(Default)]
struct Tree {
    files: Vec<File>,
    paths: BTreeSet<String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.read_folder(root, "")?;
        tree.files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(tree)
    }

    fn read_folder(&mut self, root: &Path, folder: &str) -> Result<()> {
        let entries = std::fs::read_dir(root.join(folder)).with_context(|| format!("list folder {folder:?}"))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list folder {folder:?}"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if SKIPPED.contains(&name.as_str()) {
                continue; // in a second working tree, .git is a file
            }
            let kind = entry.file_type().with_context(|| format!("look at {path}"))?;
            if kind.is_dir() {
                self.read_folder(root, &path)?;
                self.paths.insert(path);
                continue;
            }
            // Only text is judged; a file that vanishes meanwhile was an editor's.
            if kind.is_file()
                && !name.ends_with(".swp")
                && let Ok(text) = std::fs::read_to_string(entry.path())
            {
                self.files.push(File { path: path.clone(), text });
            }
            self.paths.insert(path);
        }
        Ok(())
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (path, text) in files {
            tree.files.push(File { path: (*path).into(), text: (*text).into() });
            for (end, _) in path.match_indices('/') {
                tree.paths.insert(path[..end].into());
            }
            tree.paths.insert((*path).into());
        }
        tree
    }

    fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.is_rust())
    }
}

/// What the checks found.
#[derive(Default)]
struct Report {
    failures: Vec<String>,
    warnings: Vec<String>,
}

impl Report {
    fn fail(&mut self, place: &str, message: impl AsRef<str>) {
        self.failures.push(format!("{place}: {}", message.as_ref()));
    }

    fn warn(&mut self, place: &str, message: impl AsRef<str>) {
        self.warnings.push(format!("{place}: {}", message.as_ref()));
    }

    #[cfg(test)]
    fn of(check: Check, files: &[(&str, &str)]) -> Self {
        let mut report = Self::default();
        check(&Tree::of(files), &mut report);
        report
    }
}

/// Runs every check over the workspace and prints what it found, failures last.
pub fn run(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let (mut failures, mut warnings) = (Vec::new(), Vec::new());
    for (name, check) in CHECKS {
        let mut report = Report::default();
        check(&tree, &mut report);
        failures.extend(report.failures.into_iter().map(|text| format!("{name}: {text}")));
        warnings.extend(report.warnings.into_iter().map(|text| format!("{name}: {text}")));
    }
    for warning in &warnings {
        println!("warning {warning}");
    }
    for failure in &failures {
        println!("FAILURE {failure}");
    }
    println!("tidy: {} files, {} failures, {} warnings", tree.files.len(), failures.len(), warnings.len());
    if !failures.is_empty() {
        bail!("{} house rules are broken", failures.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_files_are_known_by_place_and_name() {
        for (path, expected) in [
            ("src/volume/tests.rs", true),
            ("nbd/tests/protocol/main.rs", true),
            ("benches/wire.rs", true),
            ("src/volume/engine.rs", false),
        ] {
            assert_eq!(File { path: path.into(), text: String::new() }.is_test(), expected, "{path}");
        }
    }

    #[test]
    fn own_workspace_is_readable() {
        let tree = Tree::read(&crate::root()).unwrap();
        assert!(tree.file("xtask/src/tidy.rs").is_some());
        assert!(tree.paths.contains("xtask/src"));
        assert!(tree.file("target").is_none());
    }
}
