//! Dependencies are decisions: each has its reason in `deny.toml` and its version in the workspace's manifest.

use super::{Report, Tree};

const REASON: &str = "# reason:";

/// Which table of a manifest names the dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Dev,
    Build,
    Workspace,
}

/// A dependency in a manifest, and its line (from 1).
#[derive(Debug, PartialEq, Eq)]
pub struct Dependency {
    pub kind: Kind,
    pub name: String,
    pub line: usize,
    /// Whether its version comes from the workspace's manifest.
    pub is_inherited: bool,
}

/// The dependencies of a `Cargo.toml`, in order. Reads the spellings that cargo's own tools write.
pub fn manifest(text: &str) -> Vec<Dependency> {
    let mut dependencies: Vec<Dependency> = Vec::new();
    let mut table: Option<Kind> = None;
    let mut is_own_table = false; // [dependencies.name]
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(header, _)| header) {
            let (kind, name) = section(header);
            table = kind;
            is_own_table = name.is_some();
            if let (Some(kind), Some(name)) = (kind, name) {
                dependencies.push(Dependency { kind, name: name.into(), line: index + 1, is_inherited: false });
            }
            continue;
        }
        let (Some(kind), Some((key, value))) = (table, line.split_once('=')) else { continue };
        let key = key.trim();
        let says_workspace = key.ends_with("workspace") || value.replace(' ', "").contains("workspace=true");
        if is_own_table {
            if let (true, Some(last)) = (says_workspace, dependencies.last_mut()) {
                last.is_inherited = true;
            }
            continue;
        }
        let name: String = key.split('.').next().unwrap_or_default().into();
        // Comments and the further lines of an array have other characters before their `=`.
        if !name.is_empty() && name.chars().all(|each| each.is_ascii_alphanumeric() || each == '-' || each == '_') {
            dependencies.push(Dependency { kind, name, line: index + 1, is_inherited: says_workspace });
        }
    }
    dependencies
}

/// The kind of a table's header, and the dependency's name if the table is about one.
fn section(header: &str) -> (Option<Kind>, Option<&str>) {
    const TABLES: &[(&str, Kind)] = &[
        ("workspace.dependencies", Kind::Workspace),
        ("dev-dependencies", Kind::Dev),
        ("build-dependencies", Kind::Build),
        ("dependencies", Kind::Normal),
    ];
    // [target.'cfg(unix)'.dependencies] is a table of dependencies like any other.
    let header = match header.strip_prefix("target.") {
        Some(rest) => rest.find("dependencies").map_or(header, |at| {
            let start = rest[..at].rfind('.').map_or(0, |dot| dot + 1);
            &rest[start..]
        }),
        None => header,
    };
    for (table, kind) in TABLES {
        match header.strip_prefix(table) {
            Some("") => return (Some(*kind), None),
            Some(rest) if rest.starts_with('.') => return (Some(*kind), Some(rest[1..].trim_matches('"'))),
            _ => {}
        }
    }
    (None, None)
}

/// Every foreign crate of the workspace has a line `# reason: <crate>: <why>` in `deny.toml`, and no line outlives it.
pub fn check_reasons(tree: &Tree, report: &mut Report) {
    let (Some(cargo), Some(deny)) = (tree.file("Cargo.toml"), tree.file("deny.toml")) else {
        report.fail("deny.toml", "Cargo.toml and deny.toml must both exist");
        return;
    };
    let reasons: Vec<(usize, &str, &str)> = deny
        .text
        .lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let (name, why) = line.strip_prefix(REASON)?.split_once(':')?;
            Some((index + 1, name.trim(), why.trim()))
        })
        .collect();
    let dependencies = manifest(&cargo.text);
    let foreign = || dependencies.iter().filter(|each| each.kind == Kind::Workspace && !is_ours(&each.name));
    for dependency in foreign() {
        if !reasons.iter().any(|(_, name, why)| *name == dependency.name && !why.is_empty()) {
            let name = &dependency.name;
            let place = format!("Cargo.toml:{}", dependency.line);
            report.fail(&place, format!("`{name}` has no line `{REASON} {name}: <why>` in deny.toml"));
        }
    }
    for (line, name, _) in reasons {
        if !foreign().any(|dependency| dependency.name == name) {
            report.fail(&format!("deny.toml:{line}"), format!("a reason for `{name}`, which is no dependency"));
        }
    }
}

/// One version of a crate for the whole workspace: rooms write `name.workspace = true`.
pub fn check_versions(tree: &Tree, report: &mut Report) {
    for file in tree.files.iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        let inherited = manifest(&file.text).into_iter().filter(|each| each.kind != Kind::Workspace);
        for dependency in inherited.filter(|each| !each.is_inherited) {
            let place = format!("{}:{}", file.path, dependency.line);
            let name = &dependency.name;
            report.fail(&place, format!("write `{name}.workspace = true`, its version in the root Cargo.toml"));
        }
    }
}

fn is_ours(name: &str) -> bool {
    name == "ashlar" || name.starts_with("ashlar-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
[package]
name = "room"

[dependencies]
a.workspace = true
b = { workspace = true, features = ["x"] } # why = not
c = "1"
# d = "1"
e = { version = "1", features = [
    "y=z",
] }

[dependencies.f]
workspace = true

[target.'cfg(target_os = "linux")'.dependencies]
g.workspace = true

[dev-dependencies]
h.workspace = true

[workspace.dependencies]
i = "=2.0.1"

[lints]
workspace = true
"#;

    #[test]
    fn manifests_are_read_in_every_spelling() {
        let read: Vec<(Kind, String, bool)> =
            manifest(MANIFEST).into_iter().map(|each| (each.kind, each.name, each.is_inherited)).collect();
        let expected = [
            (Kind::Normal, "a", true),
            (Kind::Normal, "b", true),
            (Kind::Normal, "c", false),
            (Kind::Normal, "e", false),
            (Kind::Normal, "f", true),
            (Kind::Normal, "g", true),
            (Kind::Dev, "h", true),
            (Kind::Workspace, "i", false),
        ];
        assert_eq!(read, expected.map(|(kind, name, inherited)| (kind, name.to_string(), inherited)));
    }

    #[test]
    fn a_dependency_without_a_reason_fails_and_so_does_a_stale_reason() {
        let cargo = "[workspace.dependencies]\nashlar-model = { path = \"model\" }\na = \"1\"\nb = \"1\"\nc = \"1\"\n";
        let deny = "# reason: a: needed\n# reason: b:\n# reason: old: gone\n";
        let report = Report::of(check_reasons, &[("Cargo.toml", cargo), ("deny.toml", deny)]);
        let places: Vec<&str> = report.failures.iter().filter_map(|text| text.split(": ").next()).collect();
        assert_eq!(places, ["Cargo.toml:4", "Cargo.toml:5", "deny.toml:3"]);
    }

    #[test]
    fn a_version_outside_the_workspace_manifest_fails() {
        let report = Report::of(check_versions, &[("room/Cargo.toml", MANIFEST)]);
        assert_eq!(report.failures.len(), 2); // c, e
    }
}
