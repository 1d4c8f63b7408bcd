//! How a file begins and how long files and functions are.

use super::source::{code, functions};
use super::{Report, Tree};

const FILE_LINES_AIM: usize = 400;
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_AIM: usize = 70;
const FUNCTION_LINES_MAX: usize = 100;

/// Every module says first what it is.
pub fn check_headers(tree: &Tree, report: &mut Report) {
    for file in tree.rust().filter(|file| !file.text.starts_with("//!")) {
        report.fail(&file.path, "must begin with `//!`: what the module is, and what it must never know");
    }
}

/// A long file is several modules that nobody has told apart yet.
pub fn check_files(tree: &Tree, report: &mut Report) {
    for file in tree.rust() {
        let line_count = file.text.lines().count();
        if line_count > FILE_LINES_MAX {
            report.fail(&file.path, format!("{line_count} lines, {FILE_LINES_MAX} are the limit"));
        } else if line_count > FILE_LINES_AIM {
            report.warn(&file.path, format!("{line_count} lines, {FILE_LINES_AIM} are the aim"));
        }
    }
}

/// A function should fit on a screen.
pub fn check_functions(tree: &Tree, report: &mut Report) {
    for file in tree.rust() {
        for function in functions(&code(&file.text)) {
            let place = format!("{}:{}", file.path, function.line);
            let (name, line_count) = (&function.name, function.line_count);
            if line_count > FUNCTION_LINES_MAX {
                report.fail(&place, format!("`{name}` has {line_count} lines, {FUNCTION_LINES_MAX} are the limit"));
            } else if line_count > FUNCTION_LINES_AIM {
                report.warn(&place, format!("`{name}` has {line_count} lines, {FUNCTION_LINES_AIM} are the aim"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(line_count: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(line_count - 2))
    }

    #[test]
    fn a_file_without_a_header_fails() {
        let report = Report::of(check_headers, &[("a.rs", "//! Good.\n"), ("b.rs", "use x;\n"), ("c.md", "text")]);
        assert_eq!(report.failures.len(), 1);
        assert!(report.failures[0].starts_with("b.rs: "));
    }

    #[test]
    fn file_lengths_warn_then_fail() {
        for (line_count, warnings, failures) in [(400, 0, 0), (401, 1, 0), (800, 1, 0), (801, 0, 1)] {
            let report = Report::of(check_files, &[("a.rs", &"\n".repeat(line_count))]);
            assert_eq!((report.warnings.len(), report.failures.len()), (warnings, failures), "{line_count}");
        }
    }

    #[test]
    fn function_lengths_warn_then_fail() {
        for (line_count, warnings, failures) in [(70, 0, 0), (71, 1, 0), (100, 1, 0), (101, 0, 1)] {
            let report = Report::of(check_functions, &[("a.rs", &function(line_count))]);
            assert_eq!((report.warnings.len(), report.failures.len()), (warnings, failures), "{line_count}");
        }
    }
}
