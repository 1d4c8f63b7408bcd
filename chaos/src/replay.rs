//! The line that replays a run: the seed, and what is left out or changed.

use crate::sim::{Class, Options};
use ashlar_model::mutation::Mutation;
use clap::Args;
use std::fmt;

/// What may be changed of the run that a seed stands for.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct Line {
    /// Run exactly this seed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Leave these classes of faults out, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = class_of)]
    pub without: Vec<Class>,
    /// Only these faults happen, by number, separated by commas; `none`: no fault at all.
    #[arg(long)]
    pub keep: Option<Keep>,
    /// How long faults happen, in milliseconds of virtual time.
    #[arg(long)]
    pub faulty_ms: Option<u64>,
    /// Writers alive at once.
    #[arg(long)]
    pub writers: Option<usize>,
    /// Blocks that guests use.
    #[arg(long)]
    pub blocks: Option<u64>,
    /// Repair nothing that a scrub finds: runs must fail.
    #[arg(long)]
    pub no_repair: bool,
    /// Break this rule of the protocol.
    #[arg(long, value_parser = mutation_of)]
    pub mutation: Option<Mutation>,
}

/// Numbers of faults.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keep(pub Vec<usize>);

impl std::str::FromStr for Keep {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::default());
        }
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

fn class_of(name: &str) -> Result<Class, String> {
    Class::by_name(name).ok_or_else(|| format!("there is no class of faults {name}; there are {:?}", Class::ALL))
}

/// The rule of this name, as an argument.
///
/// # Errors
/// The names that there are.
pub fn mutation_of(name: &str) -> Result<Mutation, String> {
    Mutation::by_name(name).ok_or_else(|| format!("there is no rule {name}; there are {:?}", Mutation::ALL))
}

impl Line {
    /// The run of a seed.
    pub fn options(&self, seed: u64) -> Options {
        let mut options = Options::from_seed(seed);
        options.without.extend(&self.without);
        options.keep = self.keep.as_ref().map(|keep| keep.0.iter().copied().collect());
        if let Some(faulty_ms) = self.faulty_ms {
            options.faulty_us = faulty_ms * 1000;
        }
        options.writers_max = self.writers.unwrap_or(options.writers_max);
        options.blocks = self.blocks.unwrap_or(options.blocks);
        if self.no_repair {
            options.settings.repairs_max = 0;
        }
        options.mutation = self.mutation;
        options
    }

    /// The line for one seed.
    pub fn of(&self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self.clone() }
    }

    /// Arguments of the command `sim`.
    pub fn arguments(&self) -> Vec<String> {
        let Self { seed, without, keep, faulty_ms, writers, blocks, no_repair, mutation } = self;
        let mut words = Vec::new();
        let mut option = |name: &str, value: Option<String>| {
            words.extend(value.into_iter().flat_map(|value| [format!("--{name}"), value]));
        };
        option("seed", seed.map(|seed| seed.to_string()));
        let names: Vec<String> = without.iter().map(|class| format!("{class:?}")).collect();
        option("without", (!names.is_empty()).then(|| names.join(",")));
        option("keep", keep.as_ref().map(Keep::to_string));
        option("faulty-ms", faulty_ms.map(|ms| ms.to_string()));
        option("writers", writers.map(|writers| writers.to_string()));
        option("blocks", blocks.map(|blocks| blocks.to_string()));
        option("mutation", mutation.map(|mutation| format!("{mutation:?}")));
        words.extend(no_repair.then(|| "--no-repair".to_owned()));
        words
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(if numbers.is_empty() { "none" } else { "" })?;
        f.write_str(&numbers.join(","))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ashlar-chaos sim {}", self.arguments().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        line: Line,
    }

    #[test]
    fn a_line_says_everything_that_it_needs_to_be_read_again() {
        let lines = [
            Line { seed: Some(7), ..Line::default() },
            Line { seed: Some(7), keep: Some(Keep(vec![])), ..Line::default() },
            Line {
                seed: Some(9),
                without: vec![Class::Rot, Class::Cut],
                keep: Some(Keep(vec![3, 5])),
                faulty_ms: Some(1500),
                writers: Some(2),
                blocks: Some(3),
                no_repair: true,
                mutation: Some(Mutation::NoGrantWait),
            },
        ];
        for line in lines {
            let words = ["sim".to_owned()].into_iter().chain(line.arguments());
            assert_eq!(Words::parse_from(words).line, line);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [["sim", "--without", "Rain"], ["sim", "--mutation", "Gravity"], ["sim", "--keep", "x"]] {
            assert!(Words::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
