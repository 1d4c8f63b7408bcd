//! How long guests stall when one node of three is lost, by kind of loss: the table of `--stalls`.

use crate::machine;
use crate::support::loss::Loss;
use crate::support::net::in_own_network;
use crate::support::stalls::{BARE_TARGET, Longest, lose_under_load, start_cluster};
use crate::support::{GIB, MIB};
use std::time::Duration;

/// fio's range: it is busy with it for as long as a run lasts.
const LOAD_BYTES: u64 = 128 * MIB;

/// Every kind of loss, with a guest beside a copy and one without, this many times each.
pub fn run(repeats: u32, protected: bool) {
    let protections: &[&str] = if protected { &["--power-loss-protected", "--atomic-writes"] } else { &[] };
    in_own_network(|| {
        let how = if protected { "power-loss protected and atomic: no flush" } else { "every commit is flushed" };
        println!("\nlongest stall in ms under fio QD32, of {repeats} losses each, {how}");
        println!("load average {}", machine::load_average());
        println!(
            "{:<14} {:<8} {:>28}   {:>28}",
            "loss of n3", "guest at", "writes: before  lost  back", "reads: before  lost  back"
        );
        for target in ["n1", BARE_TARGET] {
            let mut cluster = start_cluster("stalls", 2 * GIB, protections);
            for loss in Loss::ALL {
                let mut felt: Vec<(Longest, Longest)> = Vec::new();
                for _ in 0..repeats {
                    let once = lose_under_load(&mut cluster, target, loss, LOAD_BYTES);
                    println!("    {}: {once}", loss.name());
                    felt.push((once.writes, once.reads));
                }
                let start = (Longest::default(), Longest::default());
                let (writes, reads) =
                    felt.iter().fold(start, |(w, r), (writes, reads)| (w.max(*writes), r.max(*reads)));
                println!("{:<14} {target:<8} {}   {}", loss.name(), cells(writes), cells(reads));
            }
        }
        println!("load average at the end {}", machine::load_average());
    });
}

fn cells(longest: Longest) -> String {
    let ms = |time: Duration| format!("{:>8.1}", time.as_secs_f64() * 1e3);
    format!("    {}{}{}", ms(longest.before), ms(longest.lost), ms(longest.back))
}
