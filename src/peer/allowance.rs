//! The caller's side of flow control: the credits it has left, and the requests that wait for more. Pure.

use crate::wire::message::{Envelope, Progress, ToReplica};
use crate::wire::{Class, Credit, Window, Windows};
use std::collections::VecDeque;

/// Requests of one class that may wait on one link. Engines bound the bytes that they keep in flight (the lag at which a
/// device is ejected), and what waits shares its memory with them; this bounds the number, at some 40 MB. Beyond it
/// the link is given up: engines send what is not done over the next.
pub const WAITING_MAX: usize = 1 << 18;

/// One class.
#[derive(Debug, Default)]
struct Account {
    /// Granted and not with the callee.
    operations: u64,
    bytes: u64,
    /// In order; all of this class.
    waiting: VecDeque<(Envelope, ToReplica)>,
    /// Requests that have had to wait, since somebody asked.
    waits: u64,
}

/// Credits of one link, as its caller counts them.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    windows: Option<Windows>,
    accounts: [Account; 2],
}

impl Allowance {
    /// The callee's answer to the hello.
    pub fn grant(&mut self, windows: Windows) {
        assert!(self.windows.is_none(), "a link is welcomed once");
        self.windows = Some(windows);
        for class in Class::ALL {
            let Window { operations, bytes } = windows.of(class);
            let account = &mut self.accounts[class as usize];
            (account.operations, account.bytes) = (u64::from(operations), bytes);
        }
    }

    /// Hands the message back if it may be sent now; else it waits.
    ///
    /// # Errors
    /// Too many wait: the link must be closed.
    pub fn admit(&mut self, envelope: Envelope, message: ToReplica) -> Result<Option<ToReplica>, String> {
        let Some(cost) = message.cost() else {
            if let ToReplica::Heartbeat { progress } = &message {
                self.refresh(envelope, *progress);
            }
            return Ok(Some(message));
        };
        let account = &mut self.accounts[cost.class as usize];
        if account.waiting.is_empty() && account.take(cost) {
            return Ok(Some(message));
        }
        if account.waiting.len() >= WAITING_MAX {
            return Err(format!("{WAITING_MAX} {} requests wait for credits", cost.class.name()));
        }
        account.waits += 1;
        account.waiting.push_back((envelope, message));
        Ok(None)
    }

    /// A heartbeat overtakes the writes of its lane that wait. Behind a newer configuration they would be dropped, so they
    /// carry what it says.
    fn refresh(&mut self, envelope: Envelope, newest: Progress) {
        for (to, message) in &mut self.accounts[Class::Foreground as usize].waiting {
            if let ToReplica::Write { progress, .. } = message
                && *to == envelope
            {
                *progress = newest;
            }
        }
    }

    /// Credits come back.
    ///
    /// # Errors
    /// More than the callee had: the link must be closed.
    pub fn credit(&mut self, credit: Credit) -> Result<(), String> {
        let Credit { class, operations, bytes } = credit;
        let window = self.windows.map(|windows| windows.of(class));
        let account = &mut self.accounts[class as usize];
        let sums = (account.operations.checked_add(u64::from(operations)), account.bytes.checked_add(bytes));
        match (window, sums) {
            (Some(window), (Some(operations), Some(bytes)))
                if operations <= u64::from(window.operations) && bytes <= window.bytes =>
            {
                (account.operations, account.bytes) = (operations, bytes);
                Ok(())
            }
            _ => Err(format!("more {} credits came back than were taken", class.name())),
        }
    }

    /// The next waiting request of a class, if there are credits for it now.
    pub fn next(&mut self, class: Class) -> Option<(Envelope, ToReplica)> {
        let account = &mut self.accounts[class as usize];
        let cost = account.waiting.front()?.1.cost().expect("control messages do not wait");
        if account.take(cost) { account.waiting.pop_front() } else { None }
    }

    /// How many requests have had to wait since the last time, by class.
    pub fn take_waits(&mut self) -> [u64; 2] {
        self.accounts.each_mut().map(|account| std::mem::take(&mut account.waits))
    }
}

impl Account {
    fn take(&mut self, cost: Credit) -> bool {
        let left = (self.operations.checked_sub(u64::from(cost.operations)), self.bytes.checked_sub(cost.bytes));
        let (Some(operations), Some(bytes)) = left else { return false };
        (self.operations, self.bytes) = (operations, bytes);
        true
    }
}
