//! One node of three dies, hangs, or is cut off without a word, under fio with queue depth 32: no error, no wrong data,
//! and when it is back all copies are equal. How long guests stall is printed; `cargo bench --bench e2e -- --stalls`
//! makes a table of it.

mod support;

use support::loss::Loss;
use support::net::in_own_network;
use support::stalls::{BARE_TARGET, lose_under_load, start_cluster};
use support::{GIB, MIB, report};

const LOAD_BYTES: u64 = 128 * MIB;

/// The guest's node has a copy of its own.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn guests_beside_a_copy_see_no_error() {
    in_own_network(|| {
        let mut cluster = start_cluster("lost", 2 * GIB, &[]);
        for loss in [Loss::Stopped, Loss::Cut, Loss::Mute] {
            let felt = lose_under_load(&mut cluster, "n1", loss, LOAD_BYTES);
            report(&format!("{}: {felt}", loss.name()));
        }
    });
}

/// The guest's node has none: whoever is lost may be the one that is read from.
#[test]
#[ignore = "end to end: cargo xtask ci e2e"]
fn guests_without_a_copy_see_no_error() {
    in_own_network(|| {
        let mut cluster = start_cluster("bare", 2 * GIB, &[]);
        for loss in [Loss::Killed, Loss::Stopped, Loss::Deaf] {
            let felt = lose_under_load(&mut cluster, BARE_TARGET, loss, LOAD_BYTES);
            report(&format!("{}: {felt}", loss.name()));
        }
    });
}
