//! Connections that have not proven yet who they are: only so many at a time, and nobody can keep others out.
//!
//! Who comes when there is no room takes the place of another: of the oldest connection of the address that has
//! most of them. So one address that opens many only loses its own, and where all come from one address, as the
//! guests of user-mode networks do, those make room that have been silent longest.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Command;
use crate::state::{ConnId, Event};

/// Most connections that have not proven yet who they are. A fleet that reconnects at once passes in a few turns.
pub(super) const UNPROVEN_MAX: usize = 256;

/// The places of all these connections.
pub(super) struct Crowd {
    places: Mutex<Places>,
    /// Weak: a hub without handles goes down.
    owner: mpsc::WeakUnboundedSender<Command>,
}

/// Where a connection stands, which says how it is sent away.
enum Stage {
    /// Before the upgrade to a WebSocket.
    Door(CancellationToken),
    /// The hub's state knows it.
    Inside(ConnId),
}

#[derive(Default)]
struct Places {
    last: u64,
    /// The oldest first.
    taken: BTreeMap<u64, (IpAddr, Stage)>,
}

impl Places {
    /// Takes a place, and gives back the connection that has to go for it.
    fn enter(&mut self, peer: IpAddr, stage: Stage) -> (u64, Option<Stage>) {
        let goes = if self.taken.len() < UNPROVEN_MAX { None } else { self.next_to_go() };
        let gone = goes.and_then(|number| self.taken.remove(&number)).map(|(_, stage)| stage);
        self.last += 1;
        self.taken.insert(self.last, (peer, stage));
        (self.last, gone)
    }

    /// The oldest of the address that has most.
    fn next_to_go(&self) -> Option<u64> {
        let mut by_address: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (number, (peer, _)) in &self.taken {
            by_address.entry(peer.to_canonical()).or_insert((0, *number)).0 += 1;
        }
        let most = by_address.into_values().max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(*oldest)));
        most.map(|(_, oldest)| oldest)
    }
}

impl Crowd {
    pub(super) fn new(owner: mpsc::WeakUnboundedSender<Command>) -> Arc<Self> {
        Arc::new(Self { places: Mutex::default(), owner })
    }

    /// A place for a new connection.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Place {
        let sent_away = CancellationToken::new();
        let (number, gone) = self.places().enter(peer, Stage::Door(sent_away.clone()));
        match gone {
            Some(Stage::Door(other)) => other.cancel(),
            Some(Stage::Inside(conn)) => {
                if let Some(owner) = self.owner.upgrade() {
                    // A hub that has gone down has closed it.
                    let _ = owner.send(Command::Event(Box::new(Event::Crowded { conn })));
                }
            }
            None => {}
        }
        Place { crowd: Arc::clone(self), number, sent_away }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // What is done under the lock leaves nothing half done.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place, until it is dropped or another has taken it.
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
    sent_away: CancellationToken,
}

impl Place {
    /// Waits until another has taken the place of a connection that is not upgraded yet.
    pub(super) async fn taken(&self) {
        self.sent_away.cancelled().await;
    }

    /// From now on the hub's state knows the connection. Answers whether its place is still its own.
    pub(super) fn inside(&self, conn: ConnId) -> bool {
        let mut places = self.crowd.places();
        let own = places.taken.get_mut(&self.number);
        own.map(|(_, stage)| *stage = Stage::Inside(conn)).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.places().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(last).unwrap()])
    }

    type Owner = (mpsc::UnboundedSender<Command>, mpsc::UnboundedReceiver<Command>);

    fn crowd() -> (Arc<Crowd>, Owner) {
        let owner = mpsc::unbounded_channel();
        (Crowd::new(owner.0.downgrade()), owner)
    }

    #[test]
    fn who_opens_many_loses_its_own_and_nobody_else_does() {
        let (crowd, _owner) = crowd();
        let honest: Vec<Place> = (2..10).map(|last| crowd.enter(address(last))).collect();
        let flood: Vec<Place> = (0..10 * UNPROVEN_MAX).map(|_| crowd.enter(address(1))).collect();
        assert!(honest.iter().all(|place| !place.sent_away.is_cancelled()));
        let stay = flood.iter().filter(|place| !place.sent_away.is_cancelled()).count();
        assert_eq!(stay + honest.len(), UNPROVEN_MAX, "there are only so many");
        let late = crowd.enter(address(11));
        assert!(!late.sent_away.is_cancelled() && late.inside(ConnId(1)));
    }

    #[test]
    fn of_one_address_the_oldest_goes_and_a_place_that_is_given_back_is_free() {
        let (crowd, _owner) = crowd();
        let mut places: Vec<Place> = (0..UNPROVEN_MAX).map(|_| crowd.enter(address(1))).collect();
        drop(places.remove(7));
        places.push(crowd.enter(address(1)));
        assert!(places.iter().all(|place| !place.sent_away.is_cancelled()));
        places.push(crowd.enter(address(1)));
        let gone: Vec<usize> =
            places.iter().enumerate().filter(|(_, place)| place.sent_away.is_cancelled()).map(|(at, _)| at).collect();
        assert_eq!(gone, [0]);
        assert!(!places[0].inside(ConnId(1)), "its place is another's");
    }

    #[test]
    fn who_is_inside_is_sent_away_by_the_hub() {
        let (crowd, mut owner) = crowd();
        let places: Vec<Place> = (0..=UNPROVEN_MAX as u64)
            .map(|number| {
                let place = crowd.enter(address(1));
                assert!(place.inside(ConnId(number)));
                place
            })
            .collect();
        let told = owner.1.try_recv().unwrap();
        assert!(
            matches!(&told, Command::Event(event) if matches!(**event, Event::Crowded { conn: ConnId(0) })),
            "{told:?}"
        );
        assert!(owner.1.try_recv().is_err());
        drop(places);
    }
}
