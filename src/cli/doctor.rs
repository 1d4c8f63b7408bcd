//! `ashlar doctor`: findings, worst first.

use super::Connect;
use super::client::CliError;
use super::output::{OutputArgs, show, text};
use clap::Args;
use serde_json::Value;
use std::cell::Cell;
use std::fmt::Write;

/// Arguments of `ashlar doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: Connect,
}

/// Runs it.
///
/// # Errors
/// What the API says; and exit code 1 when something needs attention.
pub fn run(args: DoctorArgs) -> Result<(), CliError> {
    let client = args.connect.client()?;
    let healthy = Cell::new(true);
    show(
        args.output,
        || {
            let answer = client.get("/v1/doctor")?;
            healthy.set(answer["healthy"] == true);
            Ok(answer)
        },
        |value, _| render(value),
    )?;
    if healthy.get() {
        return Ok(());
    }
    Err(CliError::failed("something needs attention", "see the findings above", "run this again afterwards"))
}

fn render(value: &Value) -> String {
    let findings = value["findings"].as_array().map_or(&[][..], Vec::as_slice);
    if findings.is_empty() {
        return "nothing is wrong\n".into();
    }
    let mut lines = String::new();
    for finding in findings {
        let _ = writeln!(lines, "{:<8} {}", text(&finding["severity"]), text(&finding["what"]));
        for key in ["why", "hint"] {
            if let Some(said) = finding[key].as_str().filter(|said| !said.is_empty()) {
                let arrow = if key == "hint" { "-> " } else { "" };
                let _ = writeln!(lines, "         {arrow}{said}");
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_finding_says_what_and_why_and_what_to_do() {
        let value = json!({ "findings": [
            { "severity": "warning", "what": "node n3 is down", "why": "its 2 lanes are rebuilt", "hint": "start it" },
            { "severity": "note", "what": "volume v has one copy", "why": "", "hint": "" },
        ]});
        let expected = "warning  node n3 is down\n         its 2 lanes are rebuilt\n         -> start it\nnote     volume v has one copy\n";
        assert_eq!(render(&value), expected);
        assert_eq!(render(&json!({ "findings": [] })), "nothing is wrong\n");
    }
}
