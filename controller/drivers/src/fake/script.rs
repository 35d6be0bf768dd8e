//! What a fake is told to do when it is called.

use std::time::Duration;

use vm_agent_schemas::names::InstanceName;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Driver::list`](crate::Driver::list).
    List,
    /// [`Driver::create`](crate::Driver::create).
    Create,
    /// [`Driver::start`](crate::Driver::start).
    Start,
    /// [`Driver::stop`](crate::Driver::stop).
    Stop,
    /// [`Driver::resize`](crate::Driver::resize).
    Resize,
    /// [`Driver::destroy`](crate::Driver::destroy).
    Destroy,
    /// [`Driver::snapshot`](crate::Driver::snapshot).
    Snapshot,
    /// [`Driver::delete_snapshot`](crate::Driver::delete_snapshot).
    DeleteSnapshot,
    /// [`Driver::restore`](crate::Driver::restore).
    Restore,
    /// [`Driver::suspend`](crate::Driver::suspend).
    Suspend,
    /// [`Driver::prove`](crate::Driver::prove).
    Prove,
    /// [`Driver::challenge`](crate::Driver::challenge).
    Challenge,
    /// [`Driver::reseed`](crate::Driver::reseed).
    Reseed,
}

impl Call {
    /// Whether the call changes anything.
    #[must_use]
    pub const fn mutates(self) -> bool {
        !matches!(self, Self::List | Self::Prove | Self::Challenge)
    }

    pub(super) const fn verb(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Resize => "resize",
            Self::Destroy => "destroy",
            Self::Snapshot => "snapshot",
            Self::DeleteSnapshot => "delete a snapshot of",
            Self::Restore => "restore",
            Self::Suspend => "suspend",
            Self::Prove => "prove",
            Self::Challenge => "ask",
            Self::Reseed => "seed",
        }
    }
}

/// How a fake behaves when it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// It does what it is asked.
    Succeed,
    /// It fails with this reason and does nothing.
    Fail(String),
    /// It says with this reason that it can't be reached, and does nothing.
    Unavailable(String),
    /// It waits, and does then what it is asked.
    Delay(Duration),
    /// It does nothing and never answers.
    Hang,
    /// It does what it is asked and never answers: a launch that times out and yet succeeds.
    HangAfterEffect,
    /// It does what it is asked, and says with this reason that it failed.
    FailAfterEffect(String),
    /// A create leaves an instance that is Starting and shows no nonce, and fails with this reason.
    /// Another call fails and does nothing.
    HalfMake(String),
}

/// The calls that a [`Behaviour`] is meant for. Every one, unless [`times`](On::times) limits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct On {
    call: Call,
    instance: Option<InstanceName>,
    left: Option<usize>,
}

impl On {
    /// Calls of this kind on any instance.
    #[must_use]
    pub const fn every(call: Call) -> Self {
        Self { call, instance: None, left: None }
    }

    /// Calls of this kind on one instance.
    ///
    /// # Panics
    /// When the text is no name.
    #[must_use]
    pub fn call(call: Call, instance: &str) -> Self {
        Self { call, instance: Some(instance.parse().expect("the test gives a valid name")), left: None }
    }

    /// Every listing.
    #[must_use]
    pub const fn list() -> Self {
        Self::every(Call::List)
    }

    /// Creates of one instance.
    #[must_use]
    pub fn create(instance: &str) -> Self {
        Self::call(Call::Create, instance)
    }

    /// Starts of one instance.
    #[must_use]
    pub fn start(instance: &str) -> Self {
        Self::call(Call::Start, instance)
    }

    /// Stops of one instance.
    #[must_use]
    pub fn stop(instance: &str) -> Self {
        Self::call(Call::Stop, instance)
    }

    /// Resizes of one instance.
    #[must_use]
    pub fn resize(instance: &str) -> Self {
        Self::call(Call::Resize, instance)
    }

    /// Destroys of one instance.
    #[must_use]
    pub fn destroy(instance: &str) -> Self {
        Self::call(Call::Destroy, instance)
    }

    /// Proofs of one instance.
    #[must_use]
    pub fn prove(instance: &str) -> Self {
        Self::call(Call::Prove, instance)
    }

    /// Only the next so many of these calls.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { left: Some(times), ..self }
    }

    /// Only the next of these calls.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    fn fits(&self, call: Call, instance: Option<&InstanceName>) -> bool {
        self.call == call && self.left != Some(0) && (self.instance.is_none() || self.instance.as_ref() == instance)
    }
}

/// All that a fake was told. What was told last leads.
#[derive(Debug, Default)]
pub(super) struct Script(Vec<(On, Behaviour)>);

impl Script {
    pub(super) fn add(&mut self, on: On, behaviour: Behaviour) {
        self.0.push((on, behaviour));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The behaviour for this call, which is counted.
    pub(super) fn next(&mut self, call: Call, instance: Option<&InstanceName>) -> Behaviour {
        let told = self.0.iter_mut().rev().find(|(on, _)| on.fits(call, instance));
        told.map_or(Behaviour::Succeed, |(on, behaviour)| {
            on.left = on.left.map(|left| left - 1);
            behaviour.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_last_leads_until_its_times_are_over() {
        let web: InstanceName = "web".parse().unwrap();
        let mut script = Script::default();
        script.add(On::every(Call::Create), Behaviour::Hang);
        script.add(On::create("web").once(), Behaviour::HangAfterEffect);
        assert_eq!(script.next(Call::Create, Some(&"db".parse().unwrap())), Behaviour::Hang);
        assert_eq!(script.next(Call::Create, Some(&web)), Behaviour::HangAfterEffect);
        assert_eq!(script.next(Call::Create, Some(&web)), Behaviour::Hang);
        assert_eq!(script.next(Call::Start, Some(&web)), Behaviour::Succeed);
    }
}
