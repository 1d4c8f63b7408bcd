//! A cluster of a thousand nodes in memory, against the bars.

use crate::cluster::{Shape, planned, request};
use crate::memory;
use ashlar_raft::codec::{self, Kind};
use ashlar_raft::placement::{domain_of, moves, plan};
use ashlar_raft::state::decode_snapshot;
use ashlar_raft::state::entities::{Liveness, SpreadLevel};
use ashlar_raft::{Command, State};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
/// Sizes and lanes in turn; their mean is that of a petabyte in a hundred thousand volumes.
const VOLUMES: [(u64, u16); 4] = [(4 * GIB, 4), (8 * GIB, 4), (12 * GIB, 16), (16 * GIB, 16)];

const MEMORY_BAR: f64 = 1024.0;
const SNAPSHOT_BAR: f64 = 10.0;
const CREATES_BAR: f64 = 2_000.0;

/// Builds, measures and prints.
pub fn run(volumes: u64) {
    let shape = Shape { nodes: 1_000, devices_per_node: 10, zones: 5, racks: 40, device_bytes: 1 << 40 };
    let before = memory::in_use();
    let mut state = shape.build();
    let creates = creates(&mut state, volumes);
    let in_use = memory::in_use() - before;
    let bytes = state.volumes().map(|volume| volume.geometry.size_bytes).sum::<u64>();
    println!(
        "{} nodes in {} racks and {} zones, {} devices, {volumes} volumes with {:.2} PB, {} lanes, {} copysets",
        shape.nodes,
        shape.racks,
        shape.zones,
        shape.devices(),
        bytes as f64 / 1e15,
        state.volumes().map(|volume| volume.lanes.len()).sum::<usize>(),
        state.copysets().count(),
    );
    row("memory of the state (asked of the allocator)", mib(in_use), "MiB", Bar::AtMost(MEMORY_BAR));
    row("memory of the process", mib(memory::resident()), "MiB", Bar::None);
    creates.print();
    snapshot(&state);
    rack_loss(&state);
    let whole = request(volumes + 1, 64 * GIB, 64);
    let (took, placement) = timed(|| plan(&state, &whole).expect("there is room"));
    row("one decision with its explanation, 64 lanes", millis(took), "ms", Bar::None);
    drop(placement);
    evenness(&state);
    println!();
}

/// What the creates cost.
struct Creates {
    plans: Vec<Duration>,
    applies: Vec<Duration>,
}

/// Creates volumes as the service does: decide, encode for the log, decode, apply.
fn creates(state: &mut State, volumes: u64) -> Creates {
    let mut creates = Creates { plans: Vec::new(), applies: Vec::new() };
    for number in 0..volumes {
        let (size_bytes, lane_count) = VOLUMES[number as usize % VOLUMES.len()];
        let request = request(number, size_bytes, lane_count);
        let (took, command) = timed(|| planned(state, &request, number));
        creates.plans.push(took);
        let (took, ()) = timed(|| {
            let record = codec::encode(Kind::Command, &command).expect("a create fits");
            let command: Command = codec::decode(Kind::Command, &record).expect("it was encoded just now");
            state.apply(&command).expect("what was planned can be created");
        });
        creates.applies.push(took);
    }
    creates
}

impl Creates {
    fn print(mut self) {
        let total = self.plans.iter().chain(&self.applies).sum::<Duration>();
        let count = self.plans.len();
        let last = self.plans.len() - self.plans.len() / 10;
        let tail = self.plans[last..].iter().chain(&self.applies[last..]).sum::<Duration>();
        let per_minute = |count: usize, took: Duration| count as f64 * 60.0 / took.as_secs_f64().max(1e-9);
        row("creates on one core", per_minute(count, total), "/min", Bar::AtLeast(CREATES_BAR));
        row("creates, the last tenth", per_minute(count - last, tail), "/min", Bar::AtLeast(CREATES_BAR));
        for (what, times) in [("decision", &mut self.plans), ("encode and apply", &mut self.applies)] {
            times.sort();
            let at = |share: f64| millis(times[((times.len() - 1) as f64 * share) as usize]);
            println!(
                "  {what} of a create: median {:.3} ms, p99 {:.3} ms, longest {:.3} ms",
                at(0.5),
                at(0.99),
                at(1.0)
            );
        }
    }
}

fn snapshot(state: &State) {
    let (took, copy) = timed(|| state.clone());
    row("copy of the state for a reader", millis(took), "ms", Bar::None);
    drop(copy);
    let (took, record) = timed(|| codec::encode(Kind::State, state).expect("the snapshot fits"));
    row("snapshot encoded", took.as_secs_f64(), "s", Bar::AtMost(SNAPSHOT_BAR));
    row("snapshot", mib(record.len()), "MiB", Bar::None);
    let (took, decoded) = timed(|| decode_snapshot(&record).expect("it was encoded just now"));
    row("snapshot decoded, indexes built", took.as_secs_f64(), "s", Bar::AtMost(SNAPSHOT_BAR));
    assert!(decoded == *state, "the snapshot is the state");
}

/// The planner of moves: at rest, and when all nodes of a rack are out.
fn rack_loss(state: &State) {
    let (took, plan) = timed(|| moves(state));
    row("plan of moves, nothing lost", millis(took), "ms", Bar::None);
    println!("  {} moves for evenness", plan.moves.len());
    let racks = state.nodes().filter_map(|node| domain_of(node, SpreadLevel::Rack)).collect::<BTreeSet<_>>();
    let rack = racks.first().cloned().expect("there are racks");
    let is_in = |node| domain_of(node, SpreadLevel::Rack).as_ref() == Some(&rack);
    let mut lost = state.clone();
    for node in state.nodes().filter(|node| is_in(node)) {
        let (id, session, liveness) = (node.id, node.session, Liveness::Out);
        lost.apply(&Command::SetNodeLiveness { id, session, liveness }).expect("a verdict");
    }
    let (took, plan) = timed(|| moves(&lost));
    row("plan of moves, a rack lost", millis(took), "ms", Bar::None);
    let bytes = plan.moves.iter().map(|one| one.bytes_max).sum::<u64>();
    let (begun, wanted) = (plan.moves.len(), plan.wanted);
    println!("  {wanted} lanes must move; the {begun} most urgent begin, with up to {:.2} TB", bytes as f64 / 1e12);
}

fn evenness(state: &State) {
    let loads = state.devices().map(|device| device.committed_bytes).collect::<Vec<_>>();
    let mean = loads.iter().map(|load| *load as f64).sum::<f64>() / loads.len() as f64;
    let share = |load: Option<&u64>| (load.map_or(0.0, |load| *load as f64) / mean - 1.0) * 100.0;
    let widths = state.devices_in_copysets().map(|(_, sets)| sets.partners().len()).collect::<Vec<_>>();
    println!(
        "  promised bytes of a device: {:+.1} % to {:+.1} % of the mean; partners of a device: {} to {}, mean {:.1}",
        share(loads.iter().min()),
        share(loads.iter().max()),
        widths.iter().min().unwrap_or(&0),
        widths.iter().max().unwrap_or(&0),
        widths.iter().sum::<usize>() as f64 / widths.len().max(1) as f64,
    );
}

enum Bar {
    None,
    AtMost(f64),
    AtLeast(f64),
}

fn row(what: &str, figure: f64, unit: &str, bar: Bar) {
    let (bar, is_met) = match bar {
        Bar::None => (String::new(), true),
        Bar::AtMost(limit) => (format!("bar: at most {limit}"), figure <= limit),
        Bar::AtLeast(limit) => (format!("bar: at least {limit}"), figure >= limit),
    };
    let digits = if figure >= 100.0 { 0 } else { 2 };
    let mark = if is_met { "" } else { "  MISSED" };
    let line = format!("{what:<48} {figure:>10.digits$} {unit:<5} {bar}{mark}");
    println!("{}", line.trim_end());
}

fn timed<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
