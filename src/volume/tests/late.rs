//! Answers that do not come in time: reads are asked elsewhere, what may have been lost is sent again.

use super::*;

fn serving() -> Rig {
    Setup::default().serving()
}

fn answer(rig: &mut Rig, name: char, request: u64, fill: u8) -> Vec<String> {
    rig.tell(name, ToWriter::ReadDone { request, reply: good(run(0, 1), fill, stamp(5, 1)) })
}

#[test]
fn a_late_read_is_asked_of_another_member_and_the_first_answer_counts() {
    let mut rig = serving();
    rig.read(9, run(0, 1));
    assert_eq!(rig.pass_ms(9).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["B: read [0+1]"]);
    assert_eq!(rig.pass_ms(10).tick(), ["C: read [0+1]"]);
    let (request, _) = rig.asked('A');
    assert_eq!(answer(&mut rig, 'B', request, 3), ["9: read [0+1]=3"]);
    // The others come too late.
    assert_eq!(answer(&mut rig, 'A', request, 1), NOTHING);
    assert_eq!(answer(&mut rig, 'C', request, 1), NOTHING);
}

#[test]
fn the_answer_of_the_first_counts_if_it_comes_first() {
    let mut rig = serving();
    rig.read(9, run(0, 1));
    rig.pass_ms(10).tick();
    let (request, _) = rig.asked('A');
    assert_eq!(answer(&mut rig, 'A', request, 3), ["9: read [0+1]=3"]);
    assert_eq!(answer(&mut rig, 'B', request, 1), NOTHING);
}

#[test]
fn a_member_that_was_late_is_avoided_for_a_second() {
    let mut rig = serving();
    rig.read(9, run(0, 1));
    rig.pass_ms(10).tick();
    assert_eq!(rig.read(10, run(0, 1)), ["B: read [0+1]"]);
    rig.pass_ms(1000);
    for name in ['A', 'B', 'C'] {
        rig.ack(name, 0);
    }
    assert_eq!(rig.read(11, run(0, 1)), ["A: read [0+1]"]);
}

/// Symptom: reads wait for a slow member, some each second. Cause: it was tried by reads although it answered no write.
#[test]
fn a_member_that_owes_the_answer_to_a_write_for_too_long_is_not_asked() {
    let mut rig = serving();
    rig.write(7, run(4000, 1));
    rig.ack('B', 1);
    rig.ack('C', 1);
    assert_eq!(rig.pass_ms(10).read(8, run(0, 1)), ["A: read [0+1]"]);
    assert_eq!(rig.pass_ms(1).read(9, run(0, 1)), ["B: read [0+1]"]);
    rig.ack('A', 1);
    assert_eq!(rig.read(10, run(0, 1)), ["A: read [0+1]"]);
    // It is asked if there is no other.
    let mut rig = Setup::of("A").serving();
    rig.write(7, run(4000, 1));
    assert_eq!(rig.pass_ms(11).read(8, run(0, 1)), ["A: read [0+1]"]);
}

#[test]
fn a_late_member_is_read_if_there_is_no_other() {
    let mut rig = Setup::of("A").serving();
    rig.read(9, run(0, 1));
    rig.pass_ms(10).tick();
    assert_eq!(rig.read(10, run(0, 1)), ["A: read [0+1]"]);
}

#[test]
fn a_lost_question_is_asked_again_after_a_second() {
    let mut rig = Setup::of("A").serving();
    rig.read(9, run(0, 1));
    assert_eq!(rig.pass_ms(999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["A: read [0+1]"]);
    let (request, _) = rig.asked('A');
    rig.ack('A', 0);
    assert_eq!(answer(&mut rig, 'A', request, 4), ["9: read [0+1]=4"]);
    assert_eq!(answer(&mut rig, 'A', request, 4), NOTHING);
}

#[test]
fn a_late_member_that_goes_away_or_refuses_leaves_the_question_with_the_other() {
    let mut rig = serving();
    rig.read(9, run(0, 1));
    rig.pass_ms(10).tick();
    let (request, _) = rig.asked('A');
    assert_eq!(rig.down('A'), NOTHING);
    assert_eq!(answer(&mut rig, 'A', request, 1), NOTHING); // it was forgotten with its link
    rig.up('A');
    rig.ack('A', 0);
    rig.read(10, run(0, 1));
    rig.pass_ms(10).tick();
    assert_eq!(rig.tell('B', ToWriter::ReadRefused { request }), NOTHING);
    assert_eq!(answer(&mut rig, 'C', request, 6), ["9: read [0+1]=6"]);
}

#[test]
fn expectations_follow_the_answers_of_late() {
    let mut rig = serving();
    for id in 0..40 {
        rig.read(id, run(0, 1));
        rig.pass_ms(9);
        for name in ['A', 'B', 'C'] {
            rig.ack(name, 0);
        }
        rig.serve('A', 1);
    }
    rig.read(99, run(0, 1));
    assert_eq!(rig.pass_ms(60).tick(), NOTHING); // eight times nine milliseconds
    assert_eq!(rig.pass_ms(12).tick(), ["B: read [0+1]"]);
}

#[test]
fn writes_that_a_member_never_got_are_sent_again() {
    let mut rig = serving();
    rig.write(1, run(0, 1));
    rig.write(2, run(1, 1));
    rig.ack('A', 2);
    rig.ack('B', 2);
    rig.ack_single('C', 0, 2); // 1 was lost
    assert_eq!(rig.pass_ms(999).tick(), NOTHING);
    assert_eq!(rig.pass_ms(2).tick(), ["C: write 1 [0+1]=1 c1 s0"]);
    assert_eq!(rig.pass_ms(999).tick(), NOTHING);
    rig.ack('C', 2);
    assert_eq!(rig.pass_ms(2000).tick(), NOTHING);
}
