//! Seeds that are always run.

const FILE: &str = include_str!("../seeds.txt");

/// The seeds of `seeds.txt`.
pub fn seeds() -> Vec<u64> {
    let lines = FILE.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_kept_seed_has_its_reason() {
        let lines: Vec<&str> = super::FILE.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(super::seeds().len(), lines.len());
        assert!(lines.iter().all(|line| line.split_whitespace().count() > 2), "{lines:?}");
    }
}
