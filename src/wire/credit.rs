//! Flow control in words: what a request costs, what a callee grants, and what it returns. A callee counts in `ledger`, a caller in `peer`.

use super::body::{Reader, Writer};
use super::frame::{Header, PAYLOAD_BYTES_MAX, kind};
use super::message::{Content, ToReplica};
use ashlar_model::units::BLOCK_BYTES;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

/// Bytes of a block's condition and version in the answer to a question for the map, rounded up.
const MAP_BLOCK_BYTES: u64 = 24;
/// No callee grants more: sums of amounts stay far below overflow, whoever sends them.
const OPERATIONS_MAX: u32 = 1 << 24;
const BYTES_MAX: u64 = 1 << 40;

/// Which credits a request takes. Neither class can use up the other's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Guests and recovery wait for it.
    Foreground,
    /// Joins and repairs.
    Background,
}

impl Class {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Foreground, Self::Background];

    /// In words, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Foreground => "foreground",
            Self::Background => "background",
        }
    }
}

/// Credits of one class: the cost of a request, or what is returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credit {
    /// Which.
    pub class: Class,
    /// Requests.
    pub operations: u32,
    /// Bytes of their payloads, or that their answers may carry.
    pub bytes: u64,
}

/// Credits of one class at the beginning of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Requests.
    pub operations: u32,
    /// Bytes.
    pub bytes: u64,
}

impl Window {
    /// True if the largest request fits, and no sum can overflow.
    fn is_usable(self) -> bool {
        let Self { operations, bytes } = self;
        (1..=OPERATIONS_MAX).contains(&operations) && (PAYLOAD_BYTES_MAX as u64..=BYTES_MAX).contains(&bytes)
    }
}

/// What a callee grants to a caller that it welcomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Windows {
    /// For guests and recovery.
    pub foreground: Window,
    /// For joins and repairs.
    pub background: Window,
}

impl Windows {
    /// Foreground: at 128 KiB a request 512 in flight, at 4 KiB 4096, more than one device needs to be busy and a round
    /// trip takes. Background: what two joins keep in flight, small so that guests' requests stand behind little of it.
    pub const DEFAULT: Self = Self {
        foreground: Window { operations: 4096, bytes: 64 << 20 },
        background: Window { operations: 64, bytes: 8 << 20 },
    };

    /// The window of a class.
    pub fn of(&self, class: Class) -> Window {
        match class {
            Class::Foreground => self.foreground,
            Class::Background => self.background,
        }
    }

    pub(super) fn encode(&self, body: &mut Writer) {
        for class in Class::ALL {
            let Window { operations, bytes } = self.of(class);
            body.u32(operations);
            body.u64(bytes);
        }
    }

    /// `None` also for windows that could not be used.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let mut window = || {
            let window = Window { operations: reader.u32()?, bytes: reader.u64()? };
            window.is_usable().then_some(window)
        };
        Some(Self { foreground: window()?, background: window()? })
    }
}

impl Credit {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self { class, operations, bytes } = *self;
        let words = [class as u64, u64::from(operations), bytes, 0, 0].map(U64::new);
        out.extend_from_slice(Header { kind: kind::CREDIT, words, ..Header::default() }.seal(&[], 0).as_bytes());
    }

    pub(super) fn decode(words: [u64; 5]) -> Option<Self> {
        let class = Class::ALL.into_iter().find(|class| *class as u64 == words[0])?;
        Some(Self { class, operations: u32::try_from(words[1]).ok()?, bytes: words[2] })
    }
}

impl ToReplica {
    /// What it costs; `None` for control messages, which need no credits and never wait behind those that do.
    pub fn cost(&self) -> Option<Credit> {
        let content_bytes = |content: &Content| match content {
            Content::Data { payload, .. } => payload.len() as u64,
            Content::Zeroes | Content::Lost => 0,
        };
        let (class, bytes) = match self {
            Self::Seal | Self::Start { .. } | Self::Heartbeat { .. } | Self::JoinStart { .. } => return None,
            Self::Write { content, .. } => (Class::Foreground, content_bytes(content)),
            Self::Copy { content, .. } => (Class::Background, content_bytes(content)),
            Self::Repair { payload, .. } => (Class::Background, payload.len() as u64),
            // The device reads them, whatever travels.
            Self::Digest { range, .. } | Self::Confirm { range, .. } => (Class::Background, range.bytes() as u64),
            Self::Read { range, map_only, background, .. } => {
                let class = if *background { Class::Background } else { Class::Foreground };
                let block_bytes = if *map_only { MAP_BLOCK_BYTES } else { BLOCK_BYTES as u64 };
                (class, u64::from(range.count) * block_bytes)
            }
        };
        Some(Credit { class, operations: 1, bytes })
    }
}
