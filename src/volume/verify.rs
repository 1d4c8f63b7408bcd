//! Which devices hold a lane whose record may be older than they are: the metadata was restored. Pure: seals in, verdict out.
//!
//! The grant names every device that may hold the lane, and all of them have sealed, so nothing changes any more. Let *T* be
//! the highest settled index among them: a set once agreed that every one of its members has everything up to T.
//!
//! - A device is **trusted** if it has everything up to T for certain: it says itself that T is settled, or it was started as
//!   a member (not as a joiner) in the newest epoch and its prefix is T or more. What it holds above T is in its list; but a
//!   join empties the list, and what is copied and settled does not come back into it. So if one that may be a member holds more
//!   than T that its list does not name, the device that knew better has been disregarded, and T says nothing. The only one
//!   is trusted in any case, with an alarm if it cannot be known that it has everything: somebody said that there is no better.
//! - It is **stale** if its prefix is below T: no member of that set can be so. It has left, and what its list says may be
//!   from an epoch that ended without it; it is left out and joins again.
//!   So is one whose list holds what the metadata knows to be above the end of its epoch. That it has not begun an epoch of
//!   which the metadata knows a set says nothing: after a clean end the set is known before its members begin.
//! - Everything else is **undecided**: a joiner that may have been promoted or not, a device of an earlier epoch, one that
//!   holds nothing although the lane was in use. There somebody has to say what is known; nothing is guessed.
//!
//! Acknowledged writes are durable on a quorum of a set. If no device was put in another one's place since the backup, that
//! set is among the trusted ones, and their lists together hold what it acknowledged. If one was, two trusted members of three
//! still meet every quorum; with fewer nobody can tell, and it is undecided as well. Who was disregarded counts among the three.

use super::engine::{Effect, VolumeEngine};
use super::lane::{Mask, bit, seals_needed, slots_of};
use super::open::is_of_its_epoch;
use ashlar_model::Epoch;
use ashlar_model::cluster::{EpochRow, QuorumPolicy};
use ashlar_model::lane::{EntryOrigin, LaneState};
use ashlar_model::limits::REPLICAS_MAX;
use ashlar_model::mutation::{Mutation, broken, mark};

/// Joins are numbered by epoch, then by count: see `begin_join_if_possible`.
const JOIN_EPOCH_SHIFT: u32 = 24;

/// Why it cannot be told who holds a lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Undecided {
    /// Each of these may hold the lane, wholly or not.
    Maybe(Mask),
    /// Whether the others hold all of it cannot be told; these do not.
    Behind(Mask),
    /// This one holds nothing of it: another one may have taken its place since.
    Nothing(usize),
    /// Too few hold it for certain; these do not.
    TooFew(Mask),
    /// None of these holds all of it: the set that the metadata knows last is elsewhere.
    NoneLeft(Mask),
    /// More hold it than a set has members: a replacement was under way.
    TooMany,
}

impl VolumeEngine {
    /// All that may hold the lane have sealed: goes on with those that do. False if that cannot be told.
    pub(super) fn verify(&mut self, number: usize) -> bool {
        let lane = &mut self.lanes[number];
        let recovery = lane.recovery.as_mut().expect("a sealing lane recovers");
        let seals = recovery.seals.iter().enumerate().filter_map(|(slot, seal)| Some((slot, seal.clone()?)));
        let seals = seals.collect::<Vec<_>>();
        let (volume, device) = (&self.spec.name, |slot: usize| lane.slots[slot].device.to_string());
        match trusted(&seals, &lane.rows, lane.copyset, self.spec.quorum) {
            Ok(trusted) => {
                if let Some(slot) = doubtful(&seals, &lane.rows) {
                    let device = device(slot);
                    self.out.push(Effect::Alarm(format!(
                        "volume {volume} lane {number} after the restore: device {device} alone is left of it, and what it holds may be \
                         old, or of different moments: check it, or restore the volume's data from a backup"
                    )));
                }
                for slot in slots_of(lane.in_sync & !trusted) {
                    mark("a restored lane goes on without a stale device");
                    recovery.seals[slot] = None;
                    let device = device(slot);
                    let note = format!("volume {volume} lane {number}: device {device} had left it, and joins again");
                    self.out.push(Effect::Note(note));
                }
                // A joiner's prefix begins where its join did, whether it has what was before or not: it vouches for nothing.
                for seal in recovery.seals.iter_mut().flatten().filter(|seal| has_joined(seal)) {
                    seal.current = Epoch::default();
                }
                lane.in_sync = trusted;
                true
            }
            Err(undecided) => {
                let scope = format!("--volume {volume} --lane {number}");
                let why = undecided.words(device, &scope);
                if recovery.undecided.replace(why.clone()).is_none() {
                    mark("a restored lane waits for an operator");
                    lane.unavailable = true;
                    self.out.push(Effect::Alarm(format!("volume {volume} lane {number} after the restore: {why}")));
                }
                false
            }
        }
    }
}

/// Decides by the seals of all devices that may hold the lane. `copyset`: all that it has places on, disregarded or not.
pub(super) fn trusted(
    seals: &[(usize, LaneState)],
    rows: &[EpochRow],
    copyset: Mask,
    policy: QuorumPolicy,
) -> Result<Mask, Undecided> {
    let all = seals.iter().fold(0, |mask, (slot, _)| mask | bit(*slot));
    let newest = seals.iter().map(|(_, seal)| seal.current).max().unwrap_or_default();
    let nobody_opened = newest == Epoch(0) && rows.is_empty();
    if nobody_opened || seals.len() == 1 || broken(Mutation::RestoreBelieved) {
        return if all.count_ones() > REPLICAS_MAX as u32 { Err(Undecided::TooMany) } else { Ok(all) };
    }
    let (trusted, behind, maybe) = sides(seals, rows, newest)?;
    match trusted.count_ones() {
        0 if behind == 0 => Err(Undecided::Maybe(maybe)),
        0 if maybe == 0 => Err(Undecided::NoneLeft(all)),
        0 => Err(Undecided::Behind(behind)),
        _ if maybe != 0 => Err(Undecided::Maybe(maybe)),
        count if count > REPLICAS_MAX as u32 => Err(Undecided::TooMany),
        count if count >= seals_needed(largest_set(all | copyset), policy) => Ok(trusted),
        _ => Err(Undecided::TooFew(all & !trusted)),
    }
}

/// As many members as a set can have had, of those that the lane has or had places on: which ones is not known.
fn largest_set(places: Mask) -> Mask {
    (1 << places.count_ones().min(REPLICAS_MAX as u32)) - 1
}

/// Who is trusted, who is not, and who may be.
fn sides(seals: &[(usize, LaneState)], rows: &[EpochRow], newest: Epoch) -> Result<(Mask, Mask, Mask), Undecided> {
    let settled = seals.iter().map(|(_, seal)| seal.settled).max().unwrap_or(0);
    let may_be_member =
        |seal: &LaneState| !is_convicted(seal, rows) && (has_joined(seal) || is_started(seal, newest, settled));
    let unnamed = seals.iter().filter(|(_, seal)| may_be_member(seal)).map(|(_, seal)| unnamed_up_to(seal)).max();
    let by_settled = unnamed.is_none_or(|unnamed| unnamed <= settled) || broken(Mutation::ConvictedTrusted);
    let (mut trusted, mut behind, mut maybe) = (0, 0, 0);
    for (slot, seal) in seals {
        let side = match standing(seal, newest, settled, by_settled) {
            Standing::Nothing => return Err(Undecided::Nothing(*slot)),
            _ if is_convicted(seal, rows) => &mut behind,
            Standing::Maybe => &mut maybe,
            Standing::Trusted => &mut trusted,
            Standing::Stale => &mut behind,
        };
        *side |= bit(*slot);
    }
    Ok((trusted, behind, maybe))
}

/// The only device left, if nobody can know that it holds everything.
fn doubtful(seals: &[(usize, LaneState)], rows: &[EpochRow]) -> Option<usize> {
    let [(slot, seal)] = seals else { return None };
    let is_whole = matches!(standing(seal, seal.current, seal.settled, true), Standing::Trusted);
    let nobody_opened = seal.current == Epoch(0) && rows.is_empty();
    let sure = nobody_opened || is_whole && !has_joined(seal) && !is_convicted(seal, rows);
    (!sure).then_some(*slot)
}

enum Standing {
    Trusted,
    Stale,
    Maybe,
    Nothing,
}

/// It came in this epoch by a join, and may be a member by now or not.
fn has_joined(seal: &LaneState) -> bool {
    Epoch(seal.join >> JOIN_EPOCH_SHIFT) == seal.current
}

/// The metadata knows an epoch that it was no member of: its list holds what that epoch left behind, and a member would have
/// dropped it.
fn is_convicted(seal: &LaneState, rows: &[EpochRow]) -> bool {
    seal.list.iter().any(|entry| !is_of_its_epoch(entry.stamp, rows)) && !broken(Mutation::ConvictedTrusted)
}

/// It was started as a member, not as a joiner, in the newest epoch, and has all that was ever settled.
fn is_started(seal: &LaneState, newest: Epoch, settled: u64) -> bool {
    seal.current == newest && !has_joined(seal) && seal.prefix >= settled
}

/// A member has everything up to this index, and its list does not say what: copies of a join that were settled are not in it,
/// and those in it have lower and higher ones beside them that are not. It names all from the first live write on.
fn unnamed_up_to(seal: &LaneState) -> u64 {
    if seal.join == 0 {
        return seal.settled;
    }
    let live = seal.list.iter().filter(|entry| entry.origin == EntryOrigin::Live);
    let first = live.map(|entry| entry.stamp.index).min();
    first.map_or(seal.prefix, |first| first - 1).max(seal.settled)
}

/// `by_settled`: it may be trusted because it says itself that the highest settled index is settled.
fn standing(seal: &LaneState, newest: Epoch, settled: u64, by_settled: bool) -> Standing {
    if seal.current == Epoch(0) {
        return Standing::Nothing;
    }
    let trusted = by_settled && seal.settled == settled || is_started(seal, newest, settled);
    match (trusted, seal.suspect.is_empty()) {
        (true, true) => Standing::Trusted,
        _ if seal.prefix < settled => Standing::Stale,
        _ => Standing::Maybe,
    }
}

impl Undecided {
    /// What is not known, and what an operator can do about it.
    pub(super) fn words(&self, device: impl Fn(usize) -> String, scope: &str) -> String {
        let names = |mask: Mask| slots_of(mask).map(&device).collect::<Vec<_>>().join(", ");
        match self {
            Self::Maybe(mask) if mask.count_ones() == 1 => format!(
                "device {0} may hold all of it or not; if the others are complete: `ashlar device disregard \
                 {0} {scope}`",
                names(*mask)
            ),
            Self::Maybe(mask) => format!(
                "each of {} may hold all of it or not; for those that do not, if you know them: `ashlar device disregard \
                 DEVICE {scope}`",
                names(*mask)
            ),
            Self::Behind(mask) => format!(
                "{} lack some of it; the others may hold all of it or not. To go on with the others: `ashlar device disregard \
                 DEVICE {scope}` for each that lacks some",
                names(*mask)
            ),
            Self::Nothing(slot) => format!(
                "device {0} holds nothing of it: another one may have taken its place since the backup, with newer \
                 content; if none has: `ashlar device disregard {0} {scope}`",
                device(*slot)
            ),
            Self::TooFew(mask) => format!(
                "too few devices are complete for certain; if nothing newer is elsewhere, go on with those: `ashlar device \
                 disregard DEVICE {scope}` for each of {}",
                names(*mask)
            ),
            Self::NoneLeft(mask) => format!(
                "no device that is left holds all of it: those of the newest set are missing. Bring them back; or go on with an \
                 older copy, and lose what was written since: `ashlar device disregard DEVICE {scope}` for all but one of {}",
                names(*mask)
            ),
            Self::TooMany => format!(
                "a device was being replaced, and both are complete; `ashlar device disregard DEVICE {scope}` for the \
                 one that shall go, unless it was the only one in sync"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::lane::ListEntry;
    use ashlar_model::{BlockRange, Stamp};

    /// A seal: epoch, prefix, settled.
    fn seal(current: u64, prefix: u64, settled: u64) -> LaneState {
        LaneState { current: Epoch(current), prefix, settled, ..LaneState::default() }
    }

    fn joined(epoch: u64, state: LaneState) -> LaneState {
        LaneState { join: (epoch << JOIN_EPOCH_SHIFT) + 1, ..state }
    }

    fn live(epoch: u64, index: u64) -> ListEntry {
        let stamp = Stamp { epoch: Epoch(epoch), index };
        ListEntry { stamp, range: BlockRange::new(0, 1), tombstone: false, origin: EntryOrigin::Live, generation: 0 }
    }

    fn suspecting(state: LaneState) -> LaneState {
        LaneState { suspect: vec![BlockRange::new(0, 1)], ..state }
    }

    /// With places on nobody else.
    fn decide(seals: &[(usize, LaneState)], rows: &[EpochRow]) -> Result<Mask, Undecided> {
        trusted(seals, rows, 0, QuorumPolicy::Majority)
    }

    fn judge(seals: &[LaneState]) -> Result<Mask, Undecided> {
        let rows = [EpochRow { epoch: Epoch(1), base: 0 }];
        let seals = seals.iter().cloned().enumerate().collect::<Vec<_>>();
        decide(&seals, &rows)
    }

    #[test]
    fn members_of_the_newest_epoch_are_trusted_however_much_they_were_told() {
        assert_eq!(judge(&[seal(5, 120, 120), seal(5, 130, 100), seal(5, 121, 0)]), Ok(0b111));
        assert_eq!(judge(&[seal(5, 120, 120), seal(5, 120, 120)]), Ok(0b11));
        assert_eq!(judge(&[seal(5, 7, 7)]), Ok(0b1));
        // Who joined in an earlier epoch was started in this one as a member.
        assert_eq!(judge(&[seal(5, 120, 120), joined(4, seal(5, 125, 90)), seal(5, 121, 0)]), Ok(0b111));
    }

    #[test]
    fn who_lacks_what_a_set_had_settled_is_left_out() {
        assert_eq!(judge(&[seal(5, 120, 120), seal(5, 120, 119), seal(5, 90, 80)]), Ok(0b011), "it was put out");
        assert_eq!(judge(&[seal(6, 120, 120), seal(6, 120, 120), seal(5, 119, 80)]), Ok(0b011), "in an earlier epoch");
        assert_eq!(judge(&[seal(5, 120, 120), seal(5, 90, 80)]), Ok(0b01), "of two, both had every acknowledged write");
        // A recovery was under way when the metadata was lost: all hold what was settled before it.
        assert_eq!(judge(&[seal(6, 121, 100), seal(5, 121, 100), seal(5, 120, 100)]), Ok(0b111));
    }

    #[test]
    fn a_set_has_three_members() {
        let whole = || seal(5, 120, 120);
        assert_eq!(judge(&[whole(), whole(), whole(), whole()]), Err(Undecided::TooMany));
        assert_eq!(judge(&[whole(), whole(), whole(), seal(5, 90, 80)]), Ok(0b0111));
        let two = [(0, whole()), (1, whole())];
        assert_eq!(trusted(&two, &[], 0b11100, QuorumPolicy::Majority), Ok(0b11), "whoever else had places");
        let empty = [0, 1, 2, 3].map(|slot| (slot, seal(0, 0, 0)));
        assert_eq!(decide(&empty, &[]), Err(Undecided::TooMany), "nobody has opened it, and it has four places");
    }

    #[test]
    fn nothing_is_guessed() {
        let whole = || seal(5, 120, 120);
        let maybe = |state: LaneState| assert_eq!(judge(&[whole(), whole(), state]), Err(Undecided::Maybe(0b100)));
        maybe(joined(5, seal(5, 125, 90))); // promoted, or still joining
        maybe(seal(4, 125, 90)); // its prefix counts writes of an epoch that may have ended before them
        maybe(suspecting(seal(5, 120, 120)));
        maybe(suspecting(seal(5, 125, 90)));
        assert_eq!(judge(&[whole(), seal(0, 0, 0), whole()]), Err(Undecided::Nothing(1)));
        assert_eq!(judge(&[whole(), seal(5, 9, 9), seal(5, 9, 9)]), Err(Undecided::TooFew(0b110)));
        // Without what the others may hold, one decides for itself.
        assert_eq!(judge(&[joined(5, seal(5, 125, 90))]), Ok(0b1));
    }

    /// Symptom: after a restore a device that had been in the middle of a join was taken as a member. Cause: the one that knew
    /// the highest settled index was disregarded, and what was left had no higher one than the joiner had before its join.
    #[test]
    fn a_joiner_is_not_trusted_for_what_it_had_settled_before_its_join() {
        let member = || joined(4, seal(5, 83, 60));
        assert_eq!(judge(&[member(), joined(4, seal(4, 82, 60))]), Err(Undecided::Maybe(0b10)));
        assert_eq!(judge(&[member(), joined(5, seal(5, 82, 60))]), Err(Undecided::Maybe(0b10)));
        // Nor is who left before a join whose copies the list does not name.
        assert_eq!(judge(&[joined(4, seal(7, 83, 60)), seal(6, 60, 60)]), Err(Undecided::Maybe(0b10)));
        // Nothing can be missing where nothing is unsettled.
        assert_eq!(judge(&[seal(5, 82, 82), joined(5, seal(5, 82, 82))]), Ok(0b11));
    }

    /// Symptom: after a restore a block was written off though a member had a good copy. Cause: it passed for no member,
    /// because it had not begun the newest epoch that was known; but after a clean end a set is known before that.
    #[test]
    fn a_member_need_not_have_begun_the_newest_epoch_that_is_known() {
        let rows = [EpochRow { epoch: Epoch(4), base: 54 }, EpochRow { epoch: Epoch(6), base: 59 }];
        let seals = [(0, seal(4, 59, 58)), (1, seal(8, 59, 58))];
        assert_eq!(decide(&seals, &rows), Ok(0b11));
    }

    /// Symptom: an operator was told to put out the only whole copy, for the sake of one that was known to lack writes.
    #[test]
    fn those_who_lack_writes_are_named_before_those_who_may() {
        let rows = [EpochRow { epoch: Epoch(4), base: 0 }, EpochRow { epoch: Epoch(7), base: 80 }];
        let behind = LaneState { list: vec![live(4, 81)], ..seal(6, 81, 60) };
        let promoted = || joined(7, seal(7, 120, 60));
        assert_eq!(decide(&[(0, behind), (1, promoted())], &rows), Err(Undecided::Behind(0b01)));
        assert_eq!(decide(&[(1, promoted())], &rows), Ok(0b10));
        assert_eq!(decide(&[(0, promoted()), (1, promoted())], &rows), Err(Undecided::Maybe(0b11)));
    }

    /// Copies of a join stand in the list in no order.
    #[test]
    fn a_list_names_everything_from_its_first_live_write_on() {
        let copy = ListEntry { origin: EntryOrigin::Copy, ..live(5, 61) };
        let listed = |list: Vec<ListEntry>| joined(4, LaneState { list, ..seal(5, 83, 60) });
        assert_eq!(unnamed_up_to(&listed(vec![copy])), 83);
        assert_eq!(unnamed_up_to(&listed(vec![copy, live(5, 71)])), 70);
        assert_eq!(unnamed_up_to(&LaneState { join: 0, ..listed(vec![]) }), 60);
    }

    /// An operator who has nothing better can still go on with an older copy.
    #[test]
    fn the_only_one_left_is_gone_on_with_though_it_was_left_behind() {
        let rows = [EpochRow { epoch: Epoch(4), base: 0 }, EpochRow { epoch: Epoch(7), base: 80 }];
        let behind = || LaneState { list: vec![live(4, 81)], ..seal(6, 81, 60) };
        let older = [(0, behind()), (1, behind())];
        assert_eq!(decide(&older, &rows), Err(Undecided::NoneLeft(0b11)));
        assert_eq!(decide(&older[..1], &rows), Ok(0b1));
    }

    #[test]
    fn a_lane_that_nobody_opened_is_empty_and_one_that_somebody_did_is_not() {
        let empty = [(0, seal(0, 0, 0)), (1, seal(0, 0, 0))];
        assert_eq!(decide(&empty, &[]), Ok(0b11));
        assert_eq!(judge(&[seal(0, 0, 0), seal(0, 0, 0)]), Err(Undecided::Nothing(0)));
        let opened_since = [(0, seal(1, 4, 4)), (1, seal(0, 0, 0))];
        assert_eq!(decide(&opened_since, &[]), Err(Undecided::Nothing(1)));
    }

    #[test]
    fn it_is_said_what_to_do() {
        let name = |slot: usize| format!("d{slot}");
        for (undecided, expected) in [
            (Undecided::Maybe(0b10), "`ashlar device disregard d1 "),
            (Undecided::Nothing(2), "`ashlar device disregard d2 "),
            (Undecided::TooFew(0b110), "d1, d2"),
            (Undecided::Maybe(0b110), "each of d1, d2 may hold"),
            (Undecided::Behind(0b110), "d1, d2 lack some of it"),
            (Undecided::NoneLeft(0b110), "for all but one of d1, d2"),
            (Undecided::TooMany, "`ashlar device disregard DEVICE "),
        ] {
            let words = undecided.words(name, "--volume v --lane 3");
            assert!(words.contains(" --volume v --lane 3`"), "{words}");
            assert!(words.contains(expected), "{words}");
        }
    }
}
