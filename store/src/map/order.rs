//! Where the blocks of a chunk's granules lie: each granule has one place more than blocks, so that a block can be overwritten
//! beside its old content.
//!
//! It must never give two blocks of a granule the same place.

use ashlar_model::units::{CHUNK_GRANULES, GRANULE_BLOCKS};

/// Places of a granule: one for each block, and the spare one. The last of them lies apart from the others.
pub const GRANULE_PLACES: usize = GRANULE_BLOCKS + 1;

/// Bytes of a granule's order on the device.
pub const ORDER_BYTES: usize = 9;

/// Ranks of blocks that lie in order.
const IN_ORDER: u64 = 0xFEDC_BA98_7654_3210;

/// Bits of one rank.
const RANK_BITS: usize = 4;

/// The places of all granules of a chunk.
///
/// A block's rank is its place among the sixteen that are not spare: four bits each. All ranks together are 0 to 15, so their
/// exclusive or is zero: the last block's follows from the others, and its bits hold the number of the spare place, of which
/// `apart` has the highest bit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Orders {
    words: Box<[u64; CHUNK_GRANULES]>,
    apart: u64,
}

/// Bits of all ranks but the last one.
const RANKS: u64 = (1 << LAST) - 1;
/// Where the last rank has its bits.
const LAST: usize = RANK_BITS * (GRANULE_BLOCKS - 1);
/// Memory that the orders of a chunk take beside it.
pub const ORDERS_BYTES: usize = size_of::<[u64; CHUNK_GRANULES]>();

const _: () = assert!(GRANULE_BLOCKS == 16 && CHUNK_GRANULES == 64);

/// The order of one granule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    ranks: u64,
    spare: u8,
}

impl Default for Order {
    /// Block by block, with the last place spare.
    fn default() -> Self {
        Self { ranks: IN_ORDER, spare: GRANULE_BLOCKS as u8 }
    }
}

impl Order {
    fn rank(self, block: usize) -> u8 {
        (self.ranks >> (RANK_BITS * block)) as u8 & 0xF
    }

    fn set_rank(&mut self, block: usize, rank: u8) {
        let shift = RANK_BITS * block;
        self.ranks = self.ranks & !(0xF << shift) | u64::from(rank) << shift;
    }

    /// The place that no block has.
    pub fn spare(self) -> usize {
        usize::from(self.spare)
    }

    /// The place of a block.
    pub fn place(self, block: usize) -> usize {
        let rank = self.rank(block);
        usize::from(rank + u8::from(rank >= self.spare))
    }

    /// Gives a block a place. Another block that has it gets this one's.
    pub fn put(&mut self, block: usize, place: usize) {
        let old = self.place(block);
        if place == old {
            return;
        }
        if place != self.spare() {
            let other =
                (0..GRANULE_BLOCKS).find(|one| self.place(*one) == place).expect("a place is spare or a block's");
            let (mine, theirs) = (self.rank(block), self.rank(other));
            self.set_rank(block, theirs);
            self.set_rank(other, mine);
            return;
        }
        let before = *self;
        self.spare = old as u8;
        for one in 0..GRANULE_BLOCKS {
            let at = if one == block { place } else { before.place(one) };
            self.set_rank(one, (at - usize::from(at > old)) as u8);
        }
    }

    /// True if the blocks of a mask lie side by side, as they come.
    pub fn is_plain(self, mask: u16) -> bool {
        self == Self::default() || (0..GRANULE_BLOCKS).all(|block| mask & 1 << block == 0 || self.place(block) == block)
    }

    /// The places of the blocks of a mask.
    pub fn places(self, mask: u16) -> u32 {
        if self == Self::default() {
            return u32::from(mask);
        }
        let (mut left, mut places) = (mask, 0);
        while left != 0 {
            places |= 1 << self.place(left.trailing_zeros() as usize);
            left &= left - 1;
        }
        places
    }

    /// As on the device: all zeroes is block by block.
    pub fn encode(self) -> [u8; ORDER_BYTES] {
        let mut bytes = [0; ORDER_BYTES];
        bytes[..8].copy_from_slice(&(self.ranks ^ IN_ORDER).to_le_bytes());
        bytes[8] = self.spare ^ GRANULE_BLOCKS as u8;
        bytes
    }

    /// Reads one; `None` if two blocks have the same place, or one has none.
    pub fn decode(bytes: &[u8; ORDER_BYTES]) -> Option<Self> {
        let ranks = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) ^ IN_ORDER;
        let order = Self { ranks, spare: bytes[8] ^ GRANULE_BLOCKS as u8 };
        let seen = (0..GRANULE_BLOCKS).fold(0u16, |seen, block| seen | 1 << order.rank(block));
        (seen == u16::MAX && order.spare() < GRANULE_PLACES).then_some(order)
    }
}

impl Default for Orders {
    fn default() -> Self {
        Self { words: Box::new([IN_ORDER & RANKS; CHUNK_GRANULES]), apart: u64::MAX }
    }
}

impl Orders {
    /// The order of a granule.
    pub fn get(&self, granule: usize) -> Order {
        let word = self.words[granule];
        let ranks = word & RANKS;
        let missing = [32, 16, 8, 4].into_iter().fold(ranks, |sum, half| sum ^ sum >> half) & 0xF;
        let apart = self.apart >> granule & 1 == 1;
        let spare = if apart { GRANULE_BLOCKS as u8 } else { (word >> LAST) as u8 };
        Order { ranks: ranks | missing << LAST, spare }
    }

    /// Sets the order of a granule.
    pub fn set(&mut self, granule: usize, order: Order) {
        self.words[granule] = order.ranks & RANKS | u64::from(order.spare & 0xF) << LAST;
        let apart = u64::from(order.spare as usize == GRANULE_BLOCKS);
        self.apart = self.apart & !(1 << granule) | apart << granule;
    }

    /// True if all blocks of all granules lie in order.
    pub fn is_plain(&self) -> bool {
        self.apart == u64::MAX && self.words.iter().all(|word| *word == IN_ORDER & RANKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any block to any place, as a list of places does it, and the same after it was packed and written.
        #[test]
        fn is_a_list_of_places(steps in proptest::collection::vec((0..GRANULE_BLOCKS, 0..GRANULE_PLACES, any::<bool>()), 1..100)) {
            let (mut orders, mut naive) = (Orders::default(), (0..GRANULE_BLOCKS).collect::<Vec<usize>>());
            for (block, place, to_spare) in steps {
                let mut order = orders.get(5);
                let place = if to_spare { order.spare() } else { place };
                let old = naive[block];
                if let Some(other) = naive.iter().position(|one| *one == place) {
                    naive[other] = old;
                }
                naive[block] = place;
                order.put(block, place);
                orders.set(5, order);
                let found: Vec<usize> = (0..GRANULE_BLOCKS).map(|block| orders.get(5).place(block)).collect();
                prop_assert_eq!(&found, &naive);
                prop_assert!(!naive.contains(&order.spare()));
                prop_assert_eq!(Order::decode(&order.encode()), Some(order));
                prop_assert_eq!(order.places(0x8001), 1u32 << naive[0] | 1 << naive[15]);
                let plain = naive.iter().enumerate().all(|(block, place)| block == *place);
                prop_assert_eq!((order.is_plain(u16::MAX), orders.is_plain()), (plain, plain));
                prop_assert_eq!((orders.get(4), orders.get(6)), (Order::default(), Order::default()));
            }
        }

        #[test]
        fn bytes_that_are_no_order_are_refused(bytes: [u8; ORDER_BYTES]) {
            if let Some(order) = Order::decode(&bytes) {
                let mut places: Vec<usize> = (0..GRANULE_BLOCKS).map(|block| order.place(block)).collect();
                places.push(order.spare());
                places.sort_unstable();
                prop_assert_eq!(places, (0..GRANULE_PLACES).collect::<Vec<usize>>());
            }
        }
    }

    #[test]
    fn zeroes_are_in_order() {
        assert_eq!(Order::decode(&[0; ORDER_BYTES]), Some(Order::default()));
        let mut twice = Order::default().encode();
        twice[0] = 0x10;
        assert_eq!(Order::decode(&twice), None, "two blocks have the place of the first");
        assert_eq!(Order::decode(&[0, 0, 0, 0, 0, 0, 0, 0, 1]), None, "there is no place 17");
    }
}
