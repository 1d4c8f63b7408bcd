//! Linearizability of one block register, strict at epochs.
//!
//! Every written value is unique, so each read names its write and the general problem becomes the zone test of
//! Gibbons and Korach, "Testing shared memories" (SIAM J. Comput. 26(4), 1997): per value, `f` is the earliest response
//! and `s` the latest invocation over its write and reads. The zone is forward if `f < s`. A history is linearizable if
//! no two forward zones overlap and no backward zone lies inside a forward one.
//!
//! Zeroes are not unique: a read of zeroes is assigned to a zeroing only where exactly one is possible. A write without
//! an answer may have taken effect until a later epoch first served, or never.

/// What an operation did to the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Wrote this unique value, not zero.
    Write(u64),
    /// Made it zero.
    Zero,
    /// Read this value; zero for zeroes.
    Read(u64),
}

/// One operation on one register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// What.
    pub kind: Kind,
    /// Invocation.
    pub start: u64,
    /// Response; `None`: unknown.
    pub end: Option<u64>,
    /// Epoch of the writer that served it; zero if it never learnt one.
    pub epoch: u64,
}

/// When each epoch first answered a guest about blocks of the register's lane.
pub type FirstServed = std::collections::BTreeMap<u64, u64>;

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    first_end: u64,
    last_start: u64,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_start
    }
    fn low(&self) -> u64 {
        self.first_end.min(self.last_start)
    }
    fn high(&self) -> u64 {
        self.first_end.max(self.last_start)
    }
}

/// Judges one register's history.
///
/// # Errors
/// A sentence that names the values and times which no order of the operations explains.
pub fn check(operations: &[Operation], first_served: &FirstServed) -> Result<(), String> {
    let mut zones = zones_of_writes(operations, first_served);
    for read in operations {
        let (Kind::Read(value), Some(end)) = (read.kind, read.end) else { continue };
        let value = if value == 0 {
            match zeroing_of(operations, first_served, read) {
                Ok(Some(zone)) => zone,
                Ok(None) => continue,
                Err(message) => return Err(message),
            }
        } else {
            value
        };
        let Some(zone) = zones.iter_mut().find(|zone| zone.0.value == value) else {
            return Err(format!("a read of {}..{end} returned {value}, which nobody wrote", read.start));
        };
        if zone.1 > end {
            return Err(format!("a read that ended at {end} returned {value}, which was written from {}", zone.1));
        }
        zone.0.first_end = zone.0.first_end.min(end);
        zone.0.last_start = zone.0.last_start.max(read.start);
        zone.2 = true;
    }
    // An unanswered write that nobody read may never have happened.
    let zones: Vec<Zone> = zones.into_iter().filter(|zone| zone.2).map(|zone| zone.0).collect();
    compare_zones(zones)
}

/// Values of zeroings: the initial one and then one per operation, far from real values.
const ZERO_BASE: u64 = 1 << 60;

/// (zone, start of the write, certain or observed)
fn zones_of_writes(operations: &[Operation], first_served: &FirstServed) -> Vec<(Zone, u64, bool)> {
    // Before all time: the register is zero.
    let mut zones = vec![(Zone { value: ZERO_BASE, first_end: 0, last_start: 0 }, 0, true)];
    for (i, operation) in operations.iter().enumerate() {
        let value = match operation.kind {
            Kind::Write(value) => value,
            Kind::Zero => ZERO_BASE + 1 + i as u64,
            Kind::Read(_) => continue,
        };
        let end = operation.end.unwrap_or_else(|| latest_effect(operation, first_served));
        let zone = Zone { value, first_end: end, last_start: operation.start };
        zones.push((zone, operation.start, operation.end.is_some()));
    }
    zones
}

/// An unanswered write takes effect before a later epoch first serves, or never.
fn latest_effect(operation: &Operation, first_served: &FirstServed) -> u64 {
    let later = first_served.range(operation.epoch + 1..).map(|(_, at)| *at).min();
    later.unwrap_or(u64::MAX).max(operation.start + 1)
}

/// The one zeroing that a read of zeroes can have seen; `None` if several could be.
fn zeroing_of(operations: &[Operation], first_served: &FirstServed, read: &Operation) -> Result<Option<u64>, String> {
    let read_end = read.end.expect("only answered reads are checked");
    let overwritten_since = |end: u64| {
        operations.iter().any(|write| {
            matches!(write.kind, Kind::Write(_)) && write.start > end && write.end.is_some_and(|w| w < read.start)
        })
    };
    let mut candidates = Vec::new();
    if !overwritten_since(0) {
        candidates.push(ZERO_BASE);
    }
    for (i, zeroing) in operations.iter().enumerate().filter(|(_, o)| o.kind == Kind::Zero) {
        let end = zeroing.end.unwrap_or_else(|| latest_effect(zeroing, first_served));
        if zeroing.start < read_end && !overwritten_since(end) {
            candidates.push(ZERO_BASE + 1 + i as u64);
        }
    }
    match candidates[..] {
        [] => Err(format!("a read of {}..{read_end} returned zeroes, which had been overwritten", read.start)),
        [one] => Ok(Some(one)),
        _ => Ok(None),
    }
}

fn compare_zones(mut zones: Vec<Zone>) -> Result<(), String> {
    zones.sort_by_key(|zone| (zone.low(), zone.high()));
    let forward: Vec<Zone> = zones.iter().filter(|zone| zone.is_forward()).copied().collect();
    for pair in forward.windows(2) {
        if pair[1].low() < pair[0].high() {
            return Err(format!(
                "values {} and {} were both current at time {}",
                pair[0].value,
                pair[1].value,
                pair[1].low()
            ));
        }
    }
    for zone in zones.iter().filter(|zone| !zone.is_forward()) {
        let at = forward.partition_point(|f| f.low() < zone.low());
        if let Some(around) = at.checked_sub(1).map(|at| forward[at])
            && around.low() < zone.low()
            && zone.high() < around.high()
        {
            return Err(format!(
                "value {} was written and gone within {}..{}, while {} was current",
                zone.value,
                zone.low(),
                zone.high(),
                around.value
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    fn write(value: u64, start: u64, end: u64) -> Operation {
        Operation { kind: Kind::Write(value), start, end: Some(end), epoch: 1 }
    }
    fn read(value: u64, start: u64, end: u64) -> Operation {
        Operation { kind: Kind::Read(value), start, end: Some(end), epoch: 1 }
    }

    #[test]
    fn a_read_after_a_write_sees_it() {
        assert!(check(&[write(1, 1, 2), read(1, 3, 4)], &FirstServed::new()).is_ok());
        assert!(check(&[write(1, 1, 2), read(0, 3, 4)], &FirstServed::new()).is_err());
        assert!(check(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)], &FirstServed::new()).is_err());
        assert!(check(&[read(7, 5, 6)], &FirstServed::new()).is_err());
    }

    #[test]
    fn new_then_old_is_refused() {
        let history = [write(1, 1, 2), write(2, 3, 20), read(2, 4, 5), read(1, 6, 7)];
        assert!(check(&history, &FirstServed::new()).is_err());
        let history = [write(1, 1, 2), write(2, 3, 20), read(1, 4, 5), read(2, 6, 7)];
        assert!(check(&history, &FirstServed::new()).is_ok());
    }

    #[test]
    fn an_unanswered_write_may_happen_until_the_next_epoch_serves() {
        let lost = Operation { end: None, ..write(2, 3, 0) };
        let served = FirstServed::from([(1, 1), (2, 10)]);
        let at = |start: u64, value| Operation { epoch: 2, ..read(value, start, start + 1) };
        assert!(check(&[write(1, 1, 2), lost, at(11, 2)], &served).is_ok());
        assert!(check(&[write(1, 1, 2), lost, at(11, 1)], &served).is_ok());
        assert!(check(&[write(1, 1, 2), lost, at(11, 1), at(20, 2)], &served).is_err(), "it came back from the dead");
    }

    #[test]
    fn zeroing_is_a_write() {
        let zero = Operation { kind: Kind::Zero, ..write(0, 3, 4) };
        assert!(check(&[write(1, 1, 2), zero, read(0, 5, 6)], &FirstServed::new()).is_ok());
        assert!(check(&[write(1, 1, 2), zero, read(1, 5, 6)], &FirstServed::new()).is_err());
    }

    /// Against every order of small histories, by brute force.
    #[test]
    fn agrees_with_brute_force() {
        let mut prng = Prng::new(7, "register");
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let history = random_history(&mut prng);
            let expected = explains(&history, 0, &mut vec![false; history.len()]);
            let got = check(&history, &FirstServed::new());
            assert_eq!(got.is_ok(), expected, "{history:?}: {got:?}");
            if expected { accepted += 1 } else { refused += 1 }
        }
        assert!(accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused");
    }

    fn random_history(prng: &mut Prng) -> Vec<Operation> {
        let writes = prng.between(1, 3);
        let mut times: Vec<u64> = (1..40).collect();
        let mut interval = |prng: &mut Prng| {
            let a = times.remove(prng.below(times.len() as u64) as usize);
            let b = times.remove(prng.below(times.len() as u64) as usize);
            (a.min(b), a.max(b))
        };
        let mut history = Vec::new();
        for value in 1..=writes {
            let (start, end) = interval(prng);
            history.push(write(value, start, end));
        }
        for _ in 0..prng.between(1, 3) {
            let (start, end) = interval(prng);
            history.push(read(prng.between(0, writes), start, end));
        }
        history
    }

    fn explains(history: &[Operation], value: u64, done: &mut Vec<bool>) -> bool {
        if done.iter().all(|d| *d) {
            return true;
        }
        for i in 0..history.len() {
            let minimal = |j: usize| done[j] || j == i || history[j].end.unwrap() > history[i].start;
            if done[i] || !(0..history.len()).all(minimal) {
                continue;
            }
            let next = match history[i].kind {
                Kind::Write(written) => written,
                Kind::Read(seen) if seen == value => value,
                _ => continue,
            };
            done[i] = true;
            let found = explains(history, next, done);
            done[i] = false;
            if found {
                return true;
            }
        }
        false
    }
}
