//! Written scenarios: the steps that a random run takes too rarely, over the same world and with the same checks.

mod joins;
mod openings;
mod reads;
mod restores;
mod seals;

use crate::child;
use anyhow::{Result, bail};
use ashlar_model::mutation::Mutation;

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Rules that it notices when they are broken. None: it is here for a branch that no run takes.
    pub against: &'static [Mutation],
    /// Runs it; what is wrong, if anything.
    pub run: fn(bool) -> Option<String>,
}

/// Every scenario.
pub const ALL: &[Scenario] = &[
    Scenario { name: "late-grant", against: &[Mutation::GrantFromReceipt], run: reads::late_grant },
    Scenario { name: "early-close", against: &[Mutation::CloseInGrantWait], run: reads::early_close },
    Scenario { name: "early-read", against: &[Mutation::ReadCheckedWhenAsked], run: reads::early_read },
    Scenario { name: "forgotten-promise", against: &[Mutation::VolatilePromise], run: seals::forgotten_promise },
    Scenario { name: "late-room", against: &[Mutation::QueueSurvivesSeal], run: seals::late_room },
    Scenario { name: "late-copy", against: &[Mutation::OldCopyAccepted], run: joins::late_copy },
    Scenario { name: "late-join", against: &[Mutation::OldJoinAccepted], run: joins::late_join },
    Scenario { name: "early-promotion", against: &[Mutation::PromoteOnSettled], run: joins::early_promotion },
    Scenario { name: "late-write", against: &[Mutation::LateWriteWins], run: joins::late_write },
    Scenario { name: "abandoned", against: &[Mutation::AbandonedGoesOn], run: openings::abandoned },
    Scenario { name: "lost-history", against: &[Mutation::JoinerTrusted], run: restores::lost_history },
    Scenario { name: "lost-settled", against: &[Mutation::RestoredIndexes], run: restores::lost_settled },
    Scenario { name: "lost-twice", against: &[], run: restores::lost_twice },
    Scenario { name: "replaced-twice", against: &[], run: joins::replaced_twice },
];

/// Names of the scenarios that notice a broken rule.
pub fn against(mutation: Mutation) -> impl Iterator<Item = &'static str> {
    ALL.iter().filter(move |scenario| scenario.against.contains(&mutation)).map(|scenario| scenario.name)
}

/// Runs one scenario or all.
///
/// # Errors
/// If a scenario found something, or there is none of that name.
pub fn command(name: Option<&str>, mutation: Option<Mutation>, trace: bool) -> Result<()> {
    let chosen: Vec<&Scenario> = ALL.iter().filter(|scenario| name.is_none_or(|name| name == scenario.name)).collect();
    if chosen.is_empty() {
        bail!("there is no such scenario");
    }
    let mut failed = 0;
    for scenario in chosen {
        ashlar_model::mutation::activate(mutation);
        let verdict = (scenario.run)(trace);
        ashlar_model::mutation::activate(None);
        match verdict {
            Some(why) => {
                println!("{} directed {}: {why}", child::VERDICT, scenario.name);
                failed += 1;
            }
            None => println!("{}: fine", scenario.name),
        }
    }
    if failed > 0 { bail!("{failed} scenarios failed") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::mutation::{activate, take_marks};

    #[test]
    fn a_device_that_is_replaced_while_it_is_promoted_is_refused() {
        take_marks();
        assert_eq!(joins::replaced_twice(false), None);
        assert!(take_marks().contains_key("a refused set is taken back"));
    }

    #[test]
    fn scenarios_pass_with_every_rule_in_force_and_fail_without_theirs() {
        for scenario in ALL {
            activate(None);
            assert_eq!((scenario.run)(false), None, "{}", scenario.name);
            for mutation in scenario.against {
                activate(Some(*mutation));
                assert!((scenario.run)(false).is_some(), "{} does not notice {mutation:?}", scenario.name);
            }
        }
        activate(None);
    }
}
