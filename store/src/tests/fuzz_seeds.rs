//! The seeds of the fuzz targets, and every input that once broke one, as ordinary tests.
//!
//! A new find becomes a file in `store/fuzz/seeds/<target>/`; nothing else is needed.

use crate::testing::fuzz::{TARGETS, seeds};
use std::path::PathBuf;

fn folder(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "seeds", target].iter().collect()
}

#[test]
fn every_seed_keeps_the_rules() {
    for (target, check) in TARGETS {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{target} has no seeds");
        for path in paths {
            println!("{}", path.display()); // the last one is the culprit
            check(&std::fs::read(&path).unwrap());
        }
    }
}

/// `ASHLAR_WRITE_SEEDS=1` writes them instead.
#[test]
fn seeds_are_those_that_the_code_makes() {
    let write = std::env::var_os("ASHLAR_WRITE_SEEDS").is_some();
    for seed in seeds::all() {
        let path = folder(seed.target).join(&seed.name);
        if write {
            std::fs::create_dir_all(folder(seed.target)).unwrap();
            std::fs::write(&path, &seed.bytes).unwrap();
        }
        let file = std::fs::read(&path).unwrap_or_default();
        assert!(
            file == seed.bytes,
            "{} is stale: ASHLAR_WRITE_SEEDS=1 cargo test -p ashlar-store seeds",
            path.display()
        );
    }
}
