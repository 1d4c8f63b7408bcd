//! Links in Markdown lead somewhere, and no text names a folder of somebody's machine.

use super::{Report, Tree};

/// Folders of one machine. In pieces, or this file would not pass.
const MACHINE_FOLDERS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// Every link of a Markdown file to a file or folder of this tree.
pub fn check_links(tree: &Tree, report: &mut Report) {
    for file in tree.files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, target) in links(&file.text) {
            let path = target.split(['#', '?']).next().unwrap_or_default();
            let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
            if path.is_empty() || is_elsewhere {
                continue;
            }
            let place = format!("{}:{line}", file.path);
            match resolve(folder, path) {
                Some(resolved) if resolved.is_empty() || tree.paths.contains(&resolved) => {}
                Some(_) => report.fail(&place, format!("the link to `{target}` leads nowhere")),
                None => report.fail(&place, format!("the link to `{target}` leads out of the tree")),
            }
        }
    }
}

/// Text that only makes sense on one machine.
pub fn check_machine_paths(tree: &Tree, report: &mut Report) {
    for file in &tree.files {
        for (index, line) in file.text.lines().enumerate() {
            for folder in MACHINE_FOLDERS.iter().filter(|folder| names_folder(line, folder)) {
                report.fail(&format!("{}:{}", file.path, index + 1), format!("`{folder}` is a path of one machine"));
            }
        }
    }
}

/// Whether the line names the folder from the root: `a/work/b` and `https://x/work/` do not.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|each| each.is_alphanumeric() || "._-*})/$".contains(each))
    })
}

/// Targets of `[text](target)` and `[name]: target`, with their lines; code is skipped.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_fence = false;
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        if start.starts_with("```") || start.starts_with("~~~") {
            in_fence = !in_fence;
            continue;
        }
        if in_fence {
            continue;
        }
        if let Some((_, target)) = start.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            links.extend(first_word(target).map(|target| (index + 1, target)));
        }
        // Every other piece between backticks is code.
        let mut is_code = false;
        let mut behind = 0;
        for (at, _) in line.match_indices('`').chain([(line.len(), "")]) {
            if !is_code {
                links.extend(inline_links(&line[behind..at], line, behind).map(|target| (index + 1, target)));
            }
            is_code = !is_code;
            behind = (at + 1).min(line.len());
        }
    }
    links
}

/// Targets that start in `piece`, which stands at `offset` of `line`.
fn inline_links<'a>(piece: &'a str, line: &'a str, offset: usize) -> impl Iterator<Item = &'a str> {
    // A link's text may end with code, so `](` may be the first thing in a piece.
    piece.match_indices("](").filter_map(move |(at, mark)| {
        let rest = &line[offset + at + mark.len()..];
        first_word(rest.split(')').next()?)
    })
}

/// The target without its title.
fn first_word(target: &str) -> Option<&str> {
    target.split_whitespace().next().map(|word| word.trim_matches(['<', '>']))
}

/// The path from the workspace's folder; `None` when it climbs out.
fn resolve(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { folder.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.retain(|part| !part.is_empty());
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_resolve_from_their_own_folder() {
        let text = "[a](b.md) [c](../README.md#top \"title\") [d](#here) [e](https://x.y/z) [`f`](../src)\n[g]: b.md\n";
        let files = [("docs/a.md", text), ("docs/b.md", ""), ("README.md", ""), ("src/lib.rs", "")];
        assert_eq!(Report::of(check_links, &files).failures, [""; 0]);
    }

    #[test]
    fn broken_links_fail_with_their_line() {
        let text = "fine\n[a](gone.md)\n[b](../../out.md)\n[c]: gone.md\n";
        let report = Report::of(check_links, &[("docs/a.md", text)]);
        let places: Vec<&str> = report.failures.iter().filter_map(|text| text.split(": ").next()).collect();
        assert_eq!(places, ["docs/a.md:2", "docs/a.md:3", "docs/a.md:4"]);
    }

    #[test]
    fn code_contains_no_links() {
        let text = "`[a](gone.md)`\n```text\n[a](gone.md)\n```\n";
        assert!(Report::of(check_links, &[("a.md", text)]).failures.is_empty());
    }

    #[test]
    fn machine_paths_fail_and_lookalikes_pass() {
        for folder in MACHINE_FOLDERS {
            for (line, count) in [
                (format!("cd {folder}x"), 1),
                (format!("path=\"{folder}x\""), 1),
                (format!("home{folder}x"), 0),
                (format!("$HOME{folder}x"), 0),
            ] {
                assert_eq!(Report::of(check_machine_paths, &[("a.txt", &line)]).failures.len(), count, "{line}");
            }
        }
    }
}
