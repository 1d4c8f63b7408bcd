//! Members that are slow: who sets the pace of guests, who is given up, and when it is taken back.

use super::*;
use crate::volume::status::Health;

/// A guest that writes a block every 10 ms. Every member but C has it at once.
struct Load {
    rig: Rig,
    quick: &'static str,
    written: u64,
    c_has: u64,
}

impl Load {
    /// C sets the pace when it lacks more than 32 blocks.
    fn on(setup: Setup) -> Self {
        Self::with_limit(32, setup)
    }

    /// The same, of so many blocks.
    fn with_limit(blocks: usize, setup: Setup) -> Self {
        let settings = Settings { eject_lag_bytes: 2 * blocks * 4096, ..setup.settings };
        let quick = setup.in_sync.strip_suffix('C').unwrap_or(setup.in_sync);
        Self { rig: Setup { settings, ..setup }.serving(), quick, written: 0, c_has: 0 }
    }

    fn last(&self) -> u64 {
        self.rig.engine.status().lanes[0].last
    }

    /// Writes that wait: all others are acknowledged at once.
    fn waiting(&self) -> usize {
        self.rig.engine.in_flight()
    }

    /// Ten writes; C follows by so many more with the tenth. Returns what happens to the set.
    fn ten(&mut self, c_follows: u64) -> Vec<String> {
        let mut happened = Vec::new();
        for tenth in 1..=10 {
            self.written += 1;
            self.rig.pass_ms(10).write(self.written, run(self.written % 1024, 1));
            for name in self.quick.chars() {
                let last = self.last();
                self.rig.ack(name, last);
            }
            if tenth % 5 == 0 {
                happened.extend(self.rig.tick());
            }
        }
        self.c_has = (self.c_has + c_follows).min(self.last());
        self.rig.ack('C', self.c_has);
        happened.retain(|line| line.starts_with("cas") || line.starts_with("C: join"));
        happened
    }

    /// The same until something happens.
    fn until(&mut self, c_follows: u64) -> Vec<String> {
        for _ in 0..1000 {
            let happened = self.ten(c_follows);
            if !happened.is_empty() {
                return happened;
            }
        }
        panic!("nothing happens");
    }

    /// Nobody writes, and nothing happens until C is asked to join: after so many tenths of a second.
    fn tenths_until_join(&mut self, join: u64) -> u64 {
        for tenth in 1..10_000 {
            let happened = self.rig.pass_ms(100).tick();
            if happened.iter().any(|line| line.starts_with(&format!("C: join #{join}"))) {
                return tenth;
            }
            for name in self.quick.chars() {
                let last = self.last();
                self.rig.ack(name, last);
            }
        }
        panic!("it is never taken back");
    }

    /// C answers, lacks nothing but the writes since, and has these.
    fn join_ends(&mut self, join: u64) {
        let join = (EPOCH << 24) + join;
        self.rig.tell('C', ToWriter::JoinReady { join, settled: self.last(), suspects: vec![] });
        self.c_has = self.last();
        let settled = stamp(1, 0);
        let mut effects = self.rig.ack('C', self.c_has);
        while let Some((name, ..)) = self.rig.reads.first().copied() {
            effects = self.rig.serve_with(name, |range| ReadReply { payload: None, ..good(range, 1, settled) });
        }
        assert!(effects.last().is_some_and(|line| line.starts_with("cas") && line.ends_with("ABC")), "{effects:?}");
        self.rig.cas_done();
        self.rig.ack('C', self.c_has);
    }
}

fn reason(rig: &Rig) -> String {
    rig.engine.status().reason.unwrap_or_default()
}

/// Symptom: guests of a volume with one slow member of three write in steps of its pauses, up to five seconds. Cause: a
/// member that gets on, however little, set their pace until it had lacked a write for that long.
#[test]
fn a_member_that_falls_back_is_ejected_and_never_waited_for() {
    let mut load = Load::on(Setup::default());
    for _ in 0..3 {
        assert_eq!(load.ten(1), NOTHING);
    }
    assert_eq!(load.ten(1), ["cas c1 AB"]);
    assert_eq!((load.last() - load.c_has, load.waiting()), (36, 0));
    // As long as the answer takes.
    for _ in 0..10 {
        assert_eq!(load.ten(1), NOTHING);
        assert_eq!(load.waiting(), 0);
    }
    load.rig.cas_done();
    assert_eq!(load.rig.retained_bytes(), 0);
}

/// Symptom: guests feel a slow device for seconds before it is ejected. Cause: it was fed until it lacked half of the limit.
#[test]
fn a_member_that_falls_back_by_a_second_is_ejected_before_it_sets_the_pace() {
    let mut load = Load::with_limit(1000, Setup::default());
    for _ in 0..11 {
        assert_eq!(load.ten(1), NOTHING);
    }
    assert_eq!(load.ten(1), ["cas c1 AB"]);
    assert_eq!((load.last() - load.c_has, load.waiting()), (108, 0));
    // One that would catch up soon after a burst of writes is not.
    let mut load = Load::with_limit(1000, Setup::default());
    for _ in 0..30 {
        assert_eq!(load.ten(2), NOTHING);
    }
}

#[test]
fn a_member_that_goes_on_quickly_after_a_pause_is_not_slow() {
    let mut load = Load::with_limit(1000, Setup::default());
    for follows in [10; 10].into_iter().chain([0; 20]).chain([5]).chain([30; 12]) {
        assert_eq!(load.ten(follows), NOTHING);
    }
    assert_eq!(load.c_has, load.last());
}

/// It costs guests two fifths for a while, and is not lost.
#[test]
fn a_member_that_follows_with_more_than_half_sets_the_pace() {
    let mut load = Load::on(Setup::default());
    for _ in 0..100 {
        assert_eq!(load.ten(6), NOTHING);
    }
    assert!(load.waiting() > 0);
    assert!((33..=36).contains(&(load.last() - load.c_has)), "{}", load.last() - load.c_has);
    // It is taken for slow as soon as it becomes slow, though guests write no faster than it.
    let since = load.rig.now_us;
    assert_eq!(load.until(1), ["cas c1 AB"]);
    assert_eq!((load.rig.now_us - since) / 100_000, 4);
    load.rig.cas_done();
    for _ in 0..3 {
        assert_eq!(load.ten(1), NOTHING);
    }
    assert_eq!(load.waiting(), 0); // what had piled up is written
}

#[test]
fn a_pause_of_a_quick_member_is_not_slowness() {
    let mut load = Load::with_limit(15, Setup::default());
    for _ in 0..10 {
        assert_eq!(load.ten(0), NOTHING);
        assert_eq!(load.ten(20), NOTHING);
    }
    assert_eq!(load.c_has, load.last());
}

#[test]
fn a_slow_member_sets_the_pace_if_the_volume_needs_it() {
    for setup in [
        Setup { in_sync_min: 3, ..Setup::default() },
        Setup { settings: Settings { ejections_per_minute: 0, ..Settings::default() }, ..Setup::default() },
    ] {
        let mut load = Load::on(setup);
        for _ in 0..20 {
            assert_eq!(load.ten(1), NOTHING);
        }
        assert_eq!(load.last() - load.c_has, 33);
        assert!(load.waiting() > 0);
    }
}

#[test]
fn a_slow_member_sets_the_pace_while_another_does_not_answer() {
    let mut load = Load::on(Setup { copyset: "ABDC", in_sync: "ABDC", ..Setup::default() });
    load.rig.down('D');
    load.quick = "AB";
    for _ in 0..11 {
        load.ten(10);
    }
    for _ in 0..5 {
        assert_eq!(load.ten(1), NOTHING);
    }
    assert!(load.waiting() > 0);
}

/// Nothing is acknowledged without it, so that it cannot lack more than what is under way.
#[test]
fn one_of_two_members_is_never_given_up_for_slowness() {
    let settings = Settings { eject_lag_bytes: 64 * 4096, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::of("AB") }.serving();
    for id in 1..=60 {
        rig.write(id, run(id, 1));
    }
    for tenth in 1..=20 {
        rig.pass_ms(100);
        let last = rig.engine.status().lanes[0].last;
        assert_eq!(rig.ack('A', last), NOTHING);
        assert_eq!(rig.ack('B', tenth)[0], format!("{tenth}: written"));
        assert!(!rig.tick().iter().any(|line| line.starts_with("cas")));
    }
}

#[test]
fn a_slow_member_is_taken_back_later_and_later_until_it_has_kept_up() {
    let mut load = Load::on(Setup { chunks: 1, ..Setup::default() });
    let mut pauses = Vec::new();
    for join in 1..=9 {
        assert_eq!(load.until(1), [format!("cas c{} AB", 2 * join - 1)]);
        load.rig.cas_done();
        pauses.push(load.tenths_until_join(join));
        load.join_ends(join);
    }
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3000, 3000, 3000]);
    for _ in 0..600 {
        assert_eq!(load.ten(10), NOTHING);
    }
    load.until(1);
    load.rig.cas_done();
    assert_eq!(load.tenths_until_join(10), 50);
}

#[test]
fn the_status_says_why_a_slow_member_is_out_and_until_when() {
    let mut load = Load::on(Setup::default());
    load.until(1);
    load.rig.cas_done();
    let c = device('C');
    assert_eq!(load.rig.engine.status().health, Health::Degraded);
    assert_eq!(
        reason(&load.rig),
        format!("lane 0: {c} was put out because it was 0.3 s behind; it is tried again in 5.0 s")
    );
    load.rig.pass_ms(4_000).tick();
    assert_eq!(
        reason(&load.rig),
        format!("lane 0: {c} was put out because it was 0.3 s behind; it is tried again in 1.0 s")
    );
    load.rig.pass_ms(999).tick();
    load.rig.pass_ms(1).up('A'); // it is up
    assert_eq!(reason(&load.rig), format!("lane 0: {c} is out of sync"));
}

#[test]
fn a_slow_member_is_taken_back_at_once_when_it_is_needed_or_started_anew() {
    let slow = || {
        let mut load = Load::on(Setup::default());
        load.until(1);
        load.rig.cas_done();
        load
    };
    let mut load = slow();
    load.rig.tell('B', ToWriter::DeviceFailed { reason: "gone".into() });
    assert_eq!(load.rig.tick(), ["cas c2 A"]);
    load.rig.cas_done();
    load.quick = "A";
    assert_eq!(load.tenths_until_join(1), 5);
    let mut load = slow();
    load.rig.down('C');
    load.rig.up('C');
    assert_eq!(load.tenths_until_join(1), 5);
}

/// C joins, and has answered; the map of what it lacks has not.
fn joining(setup: Setup) -> Load {
    let mut load = Load::on(setup);
    assert_eq!(load.rig.tick()[0], "C: join #1 c1 base 0");
    load.rig.tell('C', ToWriter::JoinReady { join: JOIN, settled: 0, suspects: vec![] });
    load
}

fn is_joining(load: &Load) -> bool {
    load.rig.engine.status().lanes[0].join.is_some()
}

/// Symptom: each time that a slow device is taken back, guests stall. Cause: writes went at the pace of a joiner.
#[test]
fn a_joiner_that_falls_back_is_dropped_and_never_waited_for() {
    let mut load = joining(Setup { in_sync: "AB", ..Setup::default() });
    for _ in 0..4 {
        assert!(is_joining(&load));
        load.ten(1);
        assert_eq!(load.waiting(), 0);
    }
    assert!(!is_joining(&load));
    assert_eq!(load.rig.retained_bytes(), 0);
    let expected =
        format!("lane 0: {} was put out because it was 0.3 s behind; it is tried again in 5.0 s", device('C'));
    assert_eq!(reason(&load.rig), expected);
    assert_eq!(load.tenths_until_join(2), 50);
}

/// A slow device is tried in one lane first, and what that shows holds for all.
#[test]
fn a_slow_device_is_on_trial_in_one_lane() {
    let settings = Settings { eject_lag_bytes: 4 * 4096, ..Settings::default() };
    let mut rig = Setup { lane_count: 2, settings, ..Setup::default() }.serving();
    let mut has = [0; 2];
    let mut answer = |rig: &mut Rig, lane: u16, more: u64| {
        has[usize::from(lane)] += more;
        rig.ack_lane(lane, 'A', has[usize::from(lane)]);
        rig.ack_lane(lane, 'B', has[usize::from(lane)]);
    };
    rig.pass_ms(200);
    rig.write(1, run(0, 5));
    rig.write(2, run(1024, 5));
    (0..2).for_each(|lane| answer(&mut rig, lane, 1));
    assert_eq!(rig.tick(), ["cas c1 AB", "cas/1 c1 AB"]);
    rig.cas_done();
    rig.cas_done();
    rig.pass_ms(4_999).tick();
    (0..2).for_each(|lane| answer(&mut rig, lane, 0));
    assert_eq!(rig.tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["C: join #1 c2 base 1"]);
    rig.tell('C', ToWriter::JoinReady { join: JOIN, settled: 0, suspects: vec![] });
    assert_eq!(rig.tick(), NOTHING);
    rig.write(3, run(0, 5));
    answer(&mut rig, 0, 1);
    rig.pass_ms(1_000);
    (0..2).for_each(|lane| answer(&mut rig, lane, 0));
    rig.tick();
    assert!(rig.engine.status().lanes.iter().all(|lane| lane.join.is_none()));
    for _ in 0..99 {
        rig.pass_ms(100);
        (0..2).for_each(|lane| answer(&mut rig, lane, 0));
        assert_eq!(rig.tick(), NOTHING);
    }
    assert_eq!(rig.pass_ms(100).tick(), ["C: join #2 c2 base 2"]);
}

#[test]
fn a_joiner_that_is_the_second_copy_is_waited_for() {
    for setup in [
        Setup { copyset: "AC", in_sync: "A", ..Setup::default() },
        Setup { in_sync: "AB", in_sync_min: 2, quorum: QuorumPolicy::All, ..Setup::default() },
    ] {
        let needed = setup.in_sync == "A";
        let mut load = joining(setup);
        for _ in 0..20 {
            load.ten(1);
        }
        assert_eq!((is_joining(&load), load.waiting() > 0), (needed, needed));
    }
}
