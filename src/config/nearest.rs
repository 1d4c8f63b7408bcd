//! The nearest valid name for one that is not valid: for error messages.

/// Number of insertions, deletions, substitutions and swaps of neighbours between two words (optimal string alignment).
pub fn edit_distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=one.len() {
        for j in 1..=other.len() {
            let changed = usize::from(one[i - 1] != other[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[one.len()][other.len()]
}

/// The valid name that is most like `wrong`, if any is like it at all (at most half of it differs).
pub fn nearest<'a>(wrong: &str, valid: &[&'a str]) -> Option<&'a str> {
    let close = valid.iter().map(|name| (edit_distance(&wrong.to_lowercase(), name), *name)).min()?;
    (close.0 <= wrong.chars().count().max(2) / 2).then_some(close.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_edits() {
        for (one, other, distance) in [
            ("", "", 0),
            ("a", "", 1),
            ("data_dir", "data_dir", 0),
            ("dta_dir", "data_dir", 1),
            ("ndb", "nbd", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edit_distance(one, other), distance, "{one} {other}");
            assert_eq!(edit_distance(other, one), distance, "{other} {one}");
        }
    }

    #[test]
    fn nearest_names_only_what_is_alike() {
        let valid = ["name", "data_dir", "api_address"];
        assert_eq!(nearest("api_adress", &valid), Some("api_address"));
        assert_eq!(nearest("Data_Dir", &valid), Some("data_dir"));
        assert_eq!(nearest("zzzzzzzz", &valid), None);
    }
}
