//! Module order inside `src/`: imports point one way.

use super::source::{Named, code_without_tests, line_of, used_paths, words};
use super::{Report, Tree};

/// One module of the daemon: a file `src/<name>.rs` or a folder `src/<name>/`.
struct Module {
    name: &'static str,
    may_use: May,
}

enum May {
    Use(&'static [&'static str]),
    UseAll,
}

/// The order. Whoever changes the design changes this table with it.
const MODULES: &[Module] = &[
    // Frames: bytes <-> types, pure.
    Module { name: "wire", may_use: May::Use(&[]) },
    // The event loop knows no protocol.
    Module { name: "reactor", may_use: May::Use(&[]) },
    // Links between shards carry frames over the event loop; they do not know what a replica or a volume does with them.
    Module { name: "peer", may_use: May::Use(&["wire", "reactor"]) },
    // The replica's side of a lane and the writer's side know the frames and not each other.
    Module { name: "replica", may_use: May::Use(&["wire"]) },
    Module { name: "volume", may_use: May::Use(&["wire"]) },
    // Certificates and keys, and the names in them; no connection.
    Module { name: "tls", may_use: May::Use(&[]) },
    // Doors for guests: protocol names stop here.
    Module { name: "front", may_use: May::Use(&["reactor", "volume", "tls"]) },
    // One thread of the data plane drives links, replicas, volumes and doors. It never imports the control plane.
    Module { name: "shard", may_use: May::Use(&["wire", "reactor", "peer", "replica", "volume", "front"]) },
    // Metrics and probes are asked, they ask nobody.
    Module { name: "observe", may_use: May::Use(&[]) },
    // Whole files or none.
    Module { name: "files", may_use: May::Use(&[]) },
    // Raw values stop here. It names the log's form, and what the doors of guests are told.
    Module { name: "config", may_use: May::Use(&["observe", "front", "tls"]) },
    // Calls over HTTP: addresses, paths and bytes, not what they mean.
    Module { name: "client", may_use: May::Use(&[]) },
    // Makes this node match the metadata, by pushing to shards.
    Module { name: "agent", may_use: May::Use(&["shard", "observe", "config", "client", "files"]) },
    // It reports what shards report, in their words for a volume's health.
    Module { name: "api", may_use: May::Use(&["agent", "shard", "volume", "observe", "config", "client"]) },
    // An HTTP client like any other; it shares the API's form of an error and the daemon's flags.
    Module { name: "cli", may_use: May::Use(&["api", "config", "observe", "client", "files", "tls"]) },
    // The composition root: the one file that names every module.
    Module { name: "daemon", may_use: May::UseAll },
    // Arguments -> daemon or command; nothing else.
    Module { name: "main", may_use: May::Use(&["config", "daemon", "cli"]) },
];

/// Compares every import inside `src/` with the table. Test code may look where it likes.
pub fn check(tree: &Tree, report: &mut Report) {
    for file in tree.rust().filter(|file| !file.is_test()) {
        let Some(inner) = file.path.strip_prefix("src/") else { continue };
        if inner == "lib.rs" {
            continue; // declares the modules
        }
        let segments: Vec<&str> = inner.trim_end_matches(".rs").split('/').filter(|&each| each != "mod").collect();
        let name = segments[0];
        let Some(module) = MODULES.iter().find(|module| module.name == name) else {
            report.fail(&file.path, format!("module `{name}` has no row in MODULES in xtask/src/tidy/modules.rs"));
            continue;
        };
        let May::Use(may_use) = module.may_use else { continue };
        let code = code_without_tests(&file.text);
        for Named { line, path: used } in used_modules(&code, segments.len()) {
            // A name that is no module is an item of the crate's root, or one of this module seen from inside it.
            let is_module = MODULES.iter().any(|module| module.name == used);
            if is_module && used != name && !may_use.contains(&used.as_str()) {
                let place = format!("{}:{line}", file.path);
                report.fail(&place, format!("`{name}` must not use `{used}` (module order)"));
            }
        }
    }
}

/// First segments behind the crate's root that the code names, in `use` or in place, by `crate::`, by the library's
/// name, or by climbing out with `super::`. `depth` is how many segments the file's own path has.
fn used_modules(code: &str, depth: usize) -> Vec<Named> {
    let climb = "super::".repeat(depth);
    let roots = ["crate::", "ashlar::", climb.as_str()];
    let mut named = Vec::new();
    for used in used_paths(code) {
        for rest in roots.iter().filter_map(|root| used.path.strip_prefix(root)) {
            named.push(Named { line: used.line, path: first_segment(rest) });
        }
    }
    for root in roots {
        // `words` wants a whole word: without the last colons it is one.
        for at in words(code, root.trim_end_matches(':')) {
            if let Some(rest) = code[at..].strip_prefix(root) {
                named.push(Named { line: line_of(code, at), path: first_segment(rest) });
            }
        }
    }
    named.retain(|each| !each.path.is_empty());
    named.sort();
    named.dedup();
    named
}

fn first_segment(path: &str) -> String {
    path.chars().take_while(|&each| each.is_alphanumeric() || each == '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(path: &str, text: &str) -> Vec<String> {
        Report::of(check, &[(path, text)]).failures
    }

    #[test]
    fn imports_down_the_order_are_free() {
        assert!(
            failures("src/volume/engine.rs", "use crate::wire::Frame;\nuse crate::volume::lane::Lane;\n").is_empty()
        );
        assert!(failures("src/daemon.rs", "use crate::{api, agent, shard};\n").is_empty());
    }

    #[test]
    fn imports_up_the_order_fail_in_every_spelling() {
        for text in [
            "use crate::volume::Engine;\n",
            "use crate::{wire, volume::Engine};\n",
            "fn f(engine: &crate::volume::Engine) {}\n",
            "use super::super::volume;\n",
            "fn f(engine: &super::super::volume::Engine) {}\n",
        ] {
            assert_eq!(
                failures("src/replica/engine.rs", text),
                ["src/replica/engine.rs:1: `replica` must not use `volume` (module order)"],
                "{text}"
            );
        }
    }

    #[test]
    fn super_inside_a_module_is_no_import() {
        assert!(failures("src/replica/engine.rs", "use super::volume;\n").is_empty());
        assert_eq!(failures("src/replica/mod.rs", "use super::volume;\n").len(), 1);
    }

    #[test]
    fn test_code_may_look_where_it_likes() {
        assert!(failures("src/wire/mod.rs", "#[cfg(test)]\nuse crate::volume;\n").is_empty());
        assert!(failures("src/wire/tests.rs", "use crate::volume;\n").is_empty());
    }

    #[test]
    fn main_sees_the_library_by_name() {
        assert!(failures("src/main.rs", "use ashlar::{cli, daemon};\n").is_empty());
        assert_eq!(failures("src/main.rs", "fn main() { ashlar::volume::run() }\n").len(), 1);
    }

    #[test]
    fn a_module_without_a_row_fails() {
        assert_eq!(failures("src/attic.rs", "").len(), 1);
    }
}
