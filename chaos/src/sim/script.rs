//! The faults of a run, as a list that the seed determines before anything runs.
//!
//! Each class draws from a stream of its own, and each fault carries what it needs. So a class or a single fault can be
//! left out without changing the others: that is how a failing run is made smaller.

use super::options::Options;
use crate::prng::Prng;

/// A class of faults.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Class {
    /// A device's process dies and comes back.
    Crash,
    /// Some machines lose power, with everything that runs on them.
    Power,
    /// Connections break.
    Reset,
    /// A machine or a link is cut off in both directions: silence.
    Cut,
    /// The same in one direction.
    OneWay,
    /// A link loses, repeats and reorders messages.
    Lossy,
    /// A writer's process dies, and another one attaches.
    WriterCrash,
    /// A new writer attaches while the old one lives on.
    Takeover,
    /// The writer closes; sometimes another one attaches before it is done.
    Close,
    /// The metadata service does not answer for a while.
    Outage,
    /// The metadata service loses answers, commits late and repeats commands.
    Metadata,
    /// A writer's process is stopped for a while.
    PauseWriter,
    /// A device's process is stopped for a while.
    PauseDevice,
    /// A device is a hundred times slower for a while.
    Slow,
    /// Bits of stored data flip.
    Rot,
    /// Data cannot be read until it is written again.
    Unreadable,
    /// Another volume takes all space of a device for a while.
    Full,
    /// A device fails for good; an operator replaces it.
    Dead,
    /// An operator ejects a member.
    Eject,
    /// An operator replaces a working device by an empty one.
    Replace,
    /// An operator makes the volume larger.
    Resize,
    /// One device and one writer are cut off from all others, and another writer attaches on the other side.
    Split,
    /// Writes of data are acknowledged and lost.
    Lost,
    /// Writes of data are acknowledged and land elsewhere.
    Misdirected,
    /// Bits of a store's own pages flip: superblocks, volume table, log, map and checksum pages.
    Spoilt,
    /// Every copy of a block is damaged, once all else is over.
    Beyond,
    /// An operator, or the cluster itself, moves some lanes to another device, or takes that back.
    Move,
    /// All metadata is lost, and restored as it was when the fault began.
    Restore,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 28] = [
        Self::Crash,
        Self::Power,
        Self::Reset,
        Self::Cut,
        Self::OneWay,
        Self::Lossy,
        Self::WriterCrash,
        Self::Takeover,
        Self::Close,
        Self::Outage,
        Self::Metadata,
        Self::PauseWriter,
        Self::PauseDevice,
        Self::Slow,
        Self::Rot,
        Self::Unreadable,
        Self::Full,
        Self::Dead,
        Self::Eject,
        Self::Replace,
        Self::Resize,
        Self::Split,
        Self::Lost,
        Self::Misdirected,
        Self::Spoilt,
        Self::Beyond,
        Self::Move,
        Self::Restore,
    ];

    /// The class of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| format!("{class:?}") == name)
    }

    /// How rare its faults are: the mean time between two, in multiples of the run's own.
    fn rarity(self) -> u64 {
        match self {
            Self::Crash | Self::Reset | Self::Cut => 2,
            Self::OneWay | Self::Lossy | Self::PauseWriter | Self::PauseDevice | Self::Eject => 4,
            Self::Takeover | Self::WriterCrash | Self::Close | Self::Split | Self::Slow | Self::Rot | Self::Full => 8,
            Self::Power | Self::Outage | Self::Metadata | Self::Unreadable | Self::Resize => 16,
            Self::Lost | Self::Misdirected | Self::Spoilt => 8,
            Self::Beyond => 2,
            Self::Move => 4,
            Self::Dead | Self::Replace => 32,
            Self::Restore => 24,
        }
    }

    /// How likely a run has it at all, out of eight.
    fn odds(self) -> u64 {
        match self {
            Self::Crash | Self::Cut | Self::Takeover | Self::WriterCrash => 6,
            Self::Move => 7,
            Self::Restore | Self::Dead | Self::Lost | Self::Misdirected | Self::Spoilt | Self::Beyond => 1,
            Self::Replace | Self::Resize | Self::Rot | Self::Unreadable | Self::Full | Self::Slow => 2,
            _ => 4,
        }
    }

    /// How long it lasts, in microseconds.
    fn lasts_us(self, prng: &mut Prng) -> u64 {
        let longest = match self {
            Self::PauseWriter | Self::PauseDevice => 4_000_000,
            Self::Lossy | Self::Slow | Self::Outage => 3_000_000,
            _ => 8_000_000,
        };
        // Mostly short, sometimes long.
        let longest = if prng.chance(1, 2) { longest / 8 } else { longest };
        prng.between(1_000, longest)
    }
}

/// One fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Its place in the full list of the seed.
    pub number: usize,
    /// When, in microseconds of virtual time.
    pub at_us: u64,
    /// What.
    pub class: Class,
    /// How long, in microseconds; not every class lasts.
    pub lasts_us: u64,
    /// Chooses the victim and everything else.
    pub choice: u64,
}

impl Fault {
    /// Randomness for the fault's own choices.
    pub fn prng(&self) -> Prng {
        Prng::of(self.choice, "fault", self.class as u64)
    }
}

/// The faults of a run, in order of time, without those that the options leave out.
pub fn draw(options: &Options) -> Vec<Fault> {
    let mut faults = Vec::new();
    for class in Class::ALL {
        let mut prng = Prng::of(options.seed, "script", class as u64);
        if !prng.chance(class.odds(), 8) {
            continue;
        }
        let every_us = options.fault_every_us * class.rarity();
        let mut at_us = prng.between(1, every_us);
        // The whole of the longest run, so that a shorter one has the same numbers.
        while at_us < Options::FAULTY_US_MAX {
            let lasts_us = class.lasts_us(&mut prng);
            faults.push(Fault { number: 0, at_us, class, lasts_us, choice: prng.next() });
            at_us += prng.between(every_us / 2, every_us * 3 / 2);
        }
    }
    faults.sort_by_key(|fault| (fault.at_us, fault.class));
    for (number, fault) in faults.iter_mut().enumerate() {
        fault.number = number;
    }
    faults.retain(|fault| {
        fault.at_us < options.faulty_us
            && !options.without.contains(&fault.class)
            && options.keep.as_ref().is_none_or(|keep| keep.contains(&fault.number))
    });
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_a_class_out_leaves_the_others_as_they_are() {
        let options = Options::from_seed(5);
        let all = draw(&options);
        assert!(all.len() > 7, "{} faults", all.len());
        let class = all[0].class;
        let fewer = draw(&Options { without: [class].into(), ..Options::from_seed(5) });
        assert!(fewer.len() < all.len());
        assert!(fewer.iter().eq(all.iter().filter(|fault| fault.class != class)));
        let kept = draw(&Options { keep: Some([all[3].number, all[7].number].into()), ..options });
        assert_eq!(kept, [all[3], all[7]]);
    }

    #[test]
    fn classes_have_names_and_every_class_is_drawn_by_some_seed() {
        for class in Class::ALL {
            assert_eq!(Class::by_name(&format!("{class:?}")), Some(class));
            let all = |seed| draw(&Options { without: Default::default(), ..Options::from_seed(seed) });
            let drawn = |seed| all(seed).iter().any(|fault| fault.class == class);
            assert!((0..200).any(drawn), "{class:?}");
        }
    }
}
