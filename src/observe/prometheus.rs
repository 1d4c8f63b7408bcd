//! Metrics as Prometheus text (exposition format 0.0.4): families with help and type, samples with labels.

use std::fmt::{Display, Write};

/// Kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Collects the text.
#[derive(Debug, Default)]
pub struct MetricsText {
    text: String,
}

impl MetricsText {
    /// Begins a family. Its samples follow with [`Self::sample`].
    pub fn family(&mut self, name: &str, kind: MetricKind, help: &str) {
        assert!(is_name(name), "'{name}' is no metric name");
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Adds one sample of a family.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.text.push(if i == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"{}\"", escape(text));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A family with one sample and no labels.
    pub fn single(&mut self, name: &str, kind: MetricKind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn is_name(name: &str) -> bool {
    name.starts_with("ashlar_") && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_follows_the_exposition_format() {
        let mut text = MetricsText::default();
        text.family("ashlar_volume_reads_total", MetricKind::Counter, "Client reads");
        text.sample("ashlar_volume_reads_total", &[("volume", "a\"b"), ("node", "n1")], 7);
        text.single("ashlar_raft_term", MetricKind::Gauge, "Raft term", 3);
        assert_eq!(
            text.finish(),
            "# HELP ashlar_volume_reads_total Client reads\n# TYPE ashlar_volume_reads_total counter\n\
             ashlar_volume_reads_total{volume=\"a\\\"b\",node=\"n1\"} 7\n\
             # HELP ashlar_raft_term Raft term\n# TYPE ashlar_raft_term gauge\nashlar_raft_term 3\n"
        );
    }
}
