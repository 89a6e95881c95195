//! The order of listings.
//!
//! ipvsadm compares addresses and marks by a 32-bit difference taken as signed, which is not transitive:
//! 10.0.0.1 < 100.0.0.1 < 192.168.0.1 < 10.0.0.1. So the result depends on the algorithm, the C library's
//! merge sort, and on the order that the director reports. Both are kept, because saved rules are compared
//! byte for byte by those who store them.

use std::cmp::Ordering;
use std::net::IpAddr;

use lb_common::protocol::Protocol;

use crate::table::{DestinationKey, ServiceKey};

/// Sorts by the merge sort of the C library: halves of n/2 and the rest, and of equals the left one first.
///
/// It says what it does for an order that is not transitive, which `slice::sort_by` does not.
pub fn merge_sort<T: Copy>(items: &mut [T], order: &impl Fn(&T, &T) -> Ordering) {
    let mut left = Vec::with_capacity(items.len() / 2);
    sort_part(items, &mut left, order);
}

fn sort_part<T: Copy>(items: &mut [T], left: &mut Vec<T>, order: &impl Fn(&T, &T) -> Ordering) {
    if items.len() < 2 {
        return;
    }
    let middle = items.len() / 2;
    sort_part(&mut items[..middle], left, order);
    sort_part(&mut items[middle..], left, order);
    left.clear();
    left.extend_from_slice(&items[..middle]);
    let (mut from_left, mut from_right) = (0, middle);
    for to in 0..items.len() {
        if from_left == left.len() {
            return;
        }
        let take_left =
            from_right == items.len() || order(&left[from_left], &items[from_right]) != Ordering::Greater;
        if take_left {
            items[to] = left[from_left];
            from_left += 1;
        } else {
            items[to] = items[from_right];
            from_right += 1;
        }
    }
}

/// What services are sorted by: mark, family, protocol, address, port.
pub fn services(a: &ServiceKey, b: &ServiceKey) -> Ordering {
    let parts = |key: &ServiceKey| match *key {
        ServiceKey::Address { protocol, address, port } => (0, protocol, words(address), port),
        // IPVS keeps a mark's service as one of TCP, without address.
        ServiceKey::Mark { mark, .. } => (mark, Protocol::Tcp, [0; 4], 0),
    };
    let (a_mark, a_protocol, a_words, a_port) = parts(a);
    let (b_mark, b_protocol, b_words, b_port) = parts(b);
    signed(a_mark, b_mark)
        .then_with(|| a.family().cmp(&b.family()))
        .then_with(|| a_protocol.cmp(&b_protocol))
        .then_with(|| by_words(a_words, b_words))
        .then_with(|| a_port.cmp(&b_port))
}

/// What destinations are sorted by: address, port.
pub fn destinations(a: &DestinationKey, b: &DestinationKey) -> Ordering {
    let (a_words, b_words) = (words(a.address), words(b.address));
    let by_address =
        if a.address.is_ipv6() { by_words(a_words, b_words) } else { signed(a_words[0], b_words[0]) };
    by_address.then_with(|| a.port.cmp(&b.port))
}

fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [address.into(), 0, 0, 0],
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            [(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32]
        }
    }
}

fn by_words(a: [u32; 4], b: [u32; 4]) -> Ordering {
    a.into_iter().zip(b).map(|(a, b)| signed(a, b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn signed(a: u32, b: u32) -> Ordering {
    (a.wrapping_sub(b) as i32).cmp(&0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same sort as its description reads: split, sort each, merge into a new list.
    fn described(items: &[u32], order: &impl Fn(&u32, &u32) -> Ordering) -> Vec<u32> {
        if items.len() < 2 {
            return items.to_vec();
        }
        let (left, right) = items.split_at(items.len() / 2);
        let (left, right) = (described(left, order), described(right, order));
        let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
        let mut merged = Vec::new();
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let side = if order(a, b) == Ordering::Greater { &mut right } else { &mut left };
            merged.extend(side.next());
        }
        merged.extend(left);
        merged.extend(right);
        merged
    }

    proptest! {
        #[test]
        fn sorts_as_described_even_without_transitivity(items in prop::collection::vec(any::<u32>(), 0..200)) {
            let order = |a: &u32, b: &u32| signed(*a, *b);
            let mut sorted = items.clone();
            merge_sort(&mut sorted, &order);
            prop_assert_eq!(sorted, described(&items, &order));
        }

        #[test]
        fn is_stable(items in prop::collection::vec((0u8..8, any::<u32>()), 0..200)) {
            let mut ours = items.clone();
            merge_sort(&mut ours, &|a, b| a.0.cmp(&b.0));
            let mut standard = items;
            standard.sort_by_key(|item| item.0);
            prop_assert_eq!(ours, standard);
        }
    }

    #[test]
    fn addresses_wrap() {
        let key = |address: &str| DestinationKey { address: address.parse().unwrap(), port: 80 };
        for (first, second) in
            [("192.168.0.1", "10.0.0.1"), ("172.16.0.1", "10.0.0.1"), ("fd00::1", "2001:db8::1")]
        {
            assert_eq!(destinations(&key(first), &key(second)), Ordering::Less, "{first} {second}");
        }
    }
}
