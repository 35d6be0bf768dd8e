//! The guest program: `vm-agent-runtime --guest`, which root runs in a machine for as long as it is up. The
//! driver reaches it over a line that needs no network (`schemas::guest`), gives the machine its identity and
//! its seed, asks what it is, and asks how its runtime does.
//!
//! What is to be done is decided in `decide`, by pure functions. `facts` reads the machine, `ground` changes
//! it; both know only the folder that they take for the root of the machine, and a few programs that `system`
//! runs. What has to be remembered from one request to the next lies in `life`.
//!
//! A machine whose driver can run programs in it needs no line: `--guest-call` answers what is asked on its
//! standard input, as the same words, and `--guest-boot` does what is to be done at a boot.

mod decide;
mod facts;
mod ground;
mod life;
mod link;
mod randomness;
mod system;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::guest::{FromGuest, Lines, Proof, Ready, SeedRequest, State, ToGuest, line};
use vm_agent_schemas::ids::RequestId;

use decide::{Change, Verdict, changes, judge};
use ground::Ground;
use life::Life;
use system::{Programs, System};

/// The pause before the channel is opened again: the device appears while the machine boots.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a request may have been on its way that came by way of a program. A host under load takes seconds.
const ON_THE_WAY: SignedDuration = SignedDuration::from_secs(60);

/// Attends to the channel until the process is killed.
pub(crate) fn main(channel: &Path) -> ExitCode {
    let Some(mut guest) = of_this_machine() else { return ExitCode::FAILURE };
    guest.resume();
    let mut trouble = None;
    loop {
        let told = attend(channel, &mut guest).err().map(|error| error.to_string());
        if let Some(told) = &told
            && trouble.as_ref() != Some(told)
        {
            tracing::warn!("the channel {} can't be used, and is tried again: {told}", channel.display());
        }
        trouble = told;
        std::thread::sleep(PAUSE);
    }
}

/// Does what is to be done when the machine has booted, and ends.
pub(crate) fn boot() -> ExitCode {
    let Some(mut guest) = of_this_machine() else { return ExitCode::FAILURE };
    guest.resume();
    ExitCode::SUCCESS
}

/// Answers what a host that runs this program in the machine says on its standard input, until that ends.
pub(crate) fn call() -> ExitCode {
    let Some(mut guest) = of_this_machine() else { return ExitCode::FAILURE };
    match serve(io::stdin().lock(), io::stdout().lock(), &mut guest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the host can't be heard or answered: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The guest program of the machine that this process runs in.
fn of_this_machine() -> Option<Guest<Programs>> {
    drop(crate::log_forward::install());
    let programs = Programs::new();
    let programs =
        programs.inspect_err(|error| tracing::error!("the guest program can't start its event loop: {error}"));
    Some(Guest { ground: Ground::new(Path::new("/"), programs.ok()?) })
}

/// Answers each request in turn. Whatever was printed before on the way to the host is kept apart by a line break.
fn serve<S: System>(mut requests: impl Read, mut answers: impl Write, guest: &mut Guest<S>) -> io::Result<()> {
    let mut lines = Lines::<ToGuest>::default();
    let mut bytes = [0; 4096];
    answers.write_all(b"\n")?;
    loop {
        let count = match requests.read(&mut bytes) {
            Ok(0) => return answers.flush(),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for said in lines.push(&bytes[..count]) {
            match said {
                Ok(request) => answers.write_all(&line(&guest.answer(&arrived(request, guest.ground.now()))))?,
                Err(error) => tracing::warn!("passed over: {error}"),
            }
        }
    }
}

/// A request that came by way of a program that was started for it. The time in it is as old as that took: a machine
/// whose clock is ahead of it by no more than that keeps its own.
fn arrived(mut request: ToGuest, now: Timestamp) -> ToGuest {
    if let ToGuest::Seed(seed) = &mut request
        && (SignedDuration::ZERO..ON_THE_WAY).contains(&now.duration_since(seed.identity.time))
    {
        seed.identity.time = now;
    }
    request
}

/// Opens the channel and answers until the host goes. Where nobody is connected to a port's other end, a read
/// says that it has ended and a write waits: so the first word waits for the host, and nothing is polled.
fn attend<S: System>(channel: &Path, guest: &mut Guest<S>) -> io::Result<()> {
    let mut file = open(channel)?;
    say(&mut file, &FromGuest::Ready(guest.ready()))?;
    let mut lines = Lines::<ToGuest>::default();
    let mut bytes = [0; 4096];
    loop {
        let count = match file.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for said in lines.push(&bytes[..count]) {
            match said {
                Ok(request) => say(&mut file, &guest.answer(&request))?,
                Err(error) => tracing::warn!("passed over: {error}"),
            }
        }
    }
}

/// Opens the channel: a device, or a unix socket in its place.
fn open(channel: &Path) -> io::Result<File> {
    if std::fs::metadata(channel)?.file_type().is_socket() {
        return Ok(File::from(OwnedFd::from(UnixStream::connect(channel)?)));
    }
    OpenOptions::new().read(true).write(true).open(channel)
}

fn say(file: &mut File, message: &FromGuest) -> io::Result<()> {
    file.write_all(&line(message))
}

/// The machine, as the driver may ask and order it about.
struct Guest<S> {
    ground: Ground<S>,
}

impl<S: System> Guest<S> {
    /// Starts the runtime of a machine that has booted again as the one that it was. A copy of its disk, or an
    /// older state of it, waits for a seed of its own.
    fn resume(&mut self) {
        let hardware = self.ground.facts().hardware();
        if self.ground.life().is_some_and(|life| life.is_of(hardware.as_deref()))
            && let Err(reason) = self.ground.start_runtime()
        {
            tracing::error!("{reason}");
        }
    }

    fn ready(&self) -> Ready {
        Ready {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.ground.facts().boot_id(),
            nonce: self.ground.life().map(|life| life.nonce),
        }
    }

    fn answer(&mut self, request: &ToGuest) -> FromGuest {
        match request {
            ToGuest::Seed(request) => match self.seed(request) {
                Ok(()) => FromGuest::Done { id: request.id },
                Err(reason) => {
                    tracing::error!(agent.name = %request.seed.agent, "not seeded: {reason}");
                    FromGuest::Failed { id: request.id, reason }
                }
            },
            ToGuest::Prepare { id } => match self.ground.prepare() {
                Ok(()) => FromGuest::Done { id: *id },
                Err(reason) => FromGuest::Failed { id: *id, reason },
            },
            ToGuest::Prove { id } => FromGuest::Proof(self.prove(*id)),
            ToGuest::Challenge { id, challenge } => match self.ground.lay_challenge(challenge) {
                Ok(()) => FromGuest::Proof(self.prove(*id)),
                Err(reason) => FromGuest::Failed { id: *id, reason },
            },
            ToGuest::Status { id } => FromGuest::State(State {
                id: *id,
                system: self.ground.boot(),
                runtime: self.ground.runtime(),
                provision: self.ground.provision(),
                cloud_init: self.ground.facts().cloud_init(),
            }),
        }
    }

    fn prove(&self, id: RequestId) -> Proof {
        let facts = self.ground.facts();
        Proof {
            id,
            nonce: self.ground.life().map(|life| life.nonce),
            machine_id: facts.machine_id(),
            boot_id: facts.boot_id(),
            hypervisor: self.ground.hypervisor(),
        }
    }

    /// Makes the machine what the request says. Every step can be done twice, and what makes the seed count as
    /// known is written last: what was cut short is done again as a whole.
    fn seed(&mut self, SeedRequest { seed, identity, .. }: &SeedRequest) -> Result<(), String> {
        let life = Life::of(seed, self.ground.facts().hardware(), &identity.machine_id);
        let known = self.ground.life();
        let verdict = judge(known.as_ref(), &life);
        match verdict {
            Verdict::Stale => {
                return Err(format!("this machine is past incarnation {} of agent `{}`", life.incarnation, life.agent));
            }
            // It runs for whoever comes first, and knows nobody yet.
            Verdict::Begin if self.ground.is_prepared() => {}
            // It must not go on with a credential and an identity that are another's.
            Verdict::Begin => self.ground.stop_runtime()?,
            Verdict::Renew | Verdict::Same => {}
        }
        let changes = changes(identity, &self.ground.look());
        for change in &changes {
            tracing::info!("{change}");
            self.ground.apply(change)?;
        }
        self.ground.stir(&identity.entropy)?;
        if verdict == Verdict::Begin {
            self.ground.draw_anew(known.is_some())?;
        }
        if verdict != Verdict::Same {
            self.ground.write_seed(seed)?;
        }
        if known.as_ref() != Some(&life) {
            self.ground.remember(&life)?;
        }
        if !self.ground.was_prepared() {
            self.ground.start_runtime()?;
        }
        let slept = changes.iter().any(|change| matches!(change, Change::Clock(_)));
        if slept && verdict != Verdict::Begin {
            self.ground.wake_runtime();
        }
        tracing::info!(agent.name = %seed.agent, "seeded as incarnation {}", life.incarnation);
        Ok(())
    }
}
