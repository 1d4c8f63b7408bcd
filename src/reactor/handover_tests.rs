//! A socket that goes from one reactor to another: nothing is lost on the way, and nothing of the old one touches it.

use super::{Completion, Outbox, Reactor, socket};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const KEY: u64 = 7;

/// Waits for one completion that is no bell.
fn next(reactor: &mut Reactor) -> Completion {
    let mut completions = Vec::new();
    loop {
        reactor.wait(&mut completions).unwrap();
        completions.retain(|completion| !matches!(completion, Completion::Rung));
        if let Some(completion) = completions.pop() {
            assert!(completions.is_empty(), "one operation was started");
            return completion;
        }
    }
}

fn receive(reactor: &mut Reactor, fd: &OwnedFd) -> Vec<u8> {
    reactor.receive(KEY, fd.as_raw_fd(), vec![0; 64]);
    match next(reactor) {
        Completion::Received { key: KEY, buffer, result } => buffer[..result.unwrap()].to_vec(),
        other => panic!("unexpected {other:?}"),
    }
}

fn send(reactor: &mut Reactor, fd: &OwnedFd, bytes: &[u8]) {
    let mut outbox = Outbox::default();
    outbox.bytes(bytes);
    assert!(reactor.send(KEY, fd.as_raw_fd(), &mut outbox));
    assert!(matches!(next(reactor), Completion::Sent { key: KEY, result: Ok(sent) } if sent == bytes.len()));
}

#[test]
fn bytes_pass_in_order_through_two_reactors_one_after_the_other() {
    let (ours, theirs) = socket::pair().unwrap();
    let mut client = UnixStream::from(theirs);
    let mut first = Reactor::new(Duration::ZERO).unwrap();
    let idle = first.in_flight();
    client.write_all(b"one").unwrap();
    assert_eq!(receive(&mut first, &ours), b"one");
    send(&mut first, &ours, b"ONE");
    assert_eq!(first.in_flight(), idle, "nothing of the socket is in the ring: it may go");
    client.write_all(b"two").unwrap(); // nobody has asked for it yet

    let bell = socket::bell().unwrap();
    let ringer = bell.try_clone().unwrap();
    let (hand_over, taken) = crossbeam::channel::bounded::<OwnedFd>(1);
    let second = std::thread::spawn(move || {
        let mut second = Reactor::with_bell(Duration::ZERO, bell).unwrap();
        // It sleeps until it is rung, and then finds what was put down for it.
        let mut completions = Vec::new();
        let fd = loop {
            second.wait(&mut completions).unwrap();
            assert!(completions.drain(..).all(|completion| matches!(completion, Completion::Rung)));
            if let Ok(fd) = taken.try_recv() {
                break fd;
            }
        };
        assert_eq!(receive(&mut second, &fd), b"two");
        send(&mut second, &fd, b"TWO");
        assert_eq!(receive(&mut second, &fd), b"", "the end");
    });
    hand_over.send(ours).unwrap();
    socket::ring(&ringer);
    let mut answers = [0; 6];
    client.read_exact(&mut answers).unwrap();
    assert_eq!(&answers, b"ONETWO");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    second.join().expect("no panic");
    drop(first);
    assert_eq!(client.read(&mut answers).unwrap(), 0, "its last owner has closed it");
}
