//! Places for connections, of which nobody gets more than a share.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much of the places one address may hold, in percent: 1 to 100.
pub const DEFAULT_SHARE: u8 = 25;

/// So many places, of which one source address holds at most its share. Clones share them.
///
/// An IPv6 network of 64 bits counts as one address, since a single machine has that many.
#[derive(Clone, Debug)]
pub struct Places {
    room: Arc<Semaphore>,
    share: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One place, given back by its drop.
#[derive(Debug)]
pub struct Place {
    _room: OwnedSemaphorePermit,
    address: IpAddr,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// All are taken.
    #[error("all places are taken")]
    Full,
    /// This address holds its share.
    #[error("this address holds as many places as one may")]
    Share,
}

impl NoPlace {
    /// A name from a closed set, for a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            NoPlace::Full => "full",
            NoPlace::Share => "share",
        }
    }
}

impl Places {
    /// `places` places, of which one address holds at most `percent` percent, and always may hold one.
    pub fn new(places: usize, percent: u8) -> Self {
        let share = (places.saturating_mul(usize::from(percent.min(100))) / 100).max(1);
        Self { room: Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS))), share, held: Arc::default() }
    }

    /// Completes when a place is free. It is not kept: that is sound where one task alone takes places.
    pub async fn free(&self) {
        // An error means that the semaphore is closed, which it never is.
        let _free = self.room.acquire().await;
    }

    /// Takes a place for a connection from this address.
    ///
    /// # Errors
    /// When none is free, or the address holds its share.
    pub fn take(&self, peer: IpAddr) -> Result<Place, NoPlace> {
        let address = counted_as(peer);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.get(&address).is_some_and(|held| *held >= self.share) {
            return Err(NoPlace::Share);
        }
        let room = self.room.clone().try_acquire_owned().map_err(|_| NoPlace::Full)?;
        *held.entry(address).or_default() += 1;
        Ok(Place { _room: room, address, held: self.held.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

fn counted_as(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_gets_more_than_a_share_and_what_is_given_back_is_free() {
        let places = Places::new(8, 25);
        let [a, b, c, d] =
            ["127.0.0.1", "::ffff:127.0.0.1", "2001:db8::1", "2001:db8::2:1"].map(|ip| ip.parse().unwrap());
        let mut held = vec![places.take(a).expect("first"), places.take(b).expect("the same address, second")];
        assert_eq!(places.take(a).expect_err("share"), NoPlace::Share);
        held.push(places.take(c).expect("first"));
        held.push(places.take(d).expect("the same network, second"));
        assert_eq!(places.take("2001:db8::ffff".parse().unwrap()).expect_err("share"), NoPlace::Share);
        for other in 1..=4 {
            held.push(places.take([10, 0, 0, other].into()).expect("others have room"));
        }
        assert_eq!(places.take([10, 0, 0, 9].into()).expect_err("full"), NoPlace::Full);
        held.clear();
        places.free().await;
        assert!(places.held.lock().unwrap().is_empty(), "nothing is remembered of who left");
        assert!(places.take(a).is_ok());
    }

    #[test]
    fn the_smallest_share_is_one_place() {
        let places = Places::new(3, 1);
        let one = places.take([10, 0, 0, 1].into()).expect("one");
        assert_eq!(places.take([10, 0, 0, 1].into()).expect_err("share"), NoPlace::Share);
        drop(one);
    }
}
