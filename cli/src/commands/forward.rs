use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use tokio::io;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use vm_agent_schemas::api::AgentView;
use vm_agent_schemas::fleet::{DriverName, Ports};
use vm_agent_schemas::names::{AgentName, PortName};
use vm_agent_schemas::wire::{StreamTarget, TaskOutcome};

use crate::Context;
use crate::client::{Client, Console};
use crate::exit::{CommandError, CommandResult, Exit};
use crate::select::about;

/// Most notices that wait to be told.
const NOTICES: usize = 64;
/// Pause after a connection that could not be taken, as when there are too many: others end meanwhile.
const BREATHER: Duration = Duration::from_millis(100);

/// Make ports of an agent reachable here
///
/// Each connection to a local port goes to that port in the agent, until Ctrl-C. A port that nobody listens on,
/// and an agent that is away, close the connection and not the port. An agent of driver `local` has no network of its
/// own, so that its ports are forwarded to other numbers only.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The agent
    name: AgentName,
    /// The ports, by number or by their names in the file; LOCAL is the one here, 0 for any that is free
    /// [default: all of its `ports` in the file]
    #[arg(value_name = "[LOCAL:]PORT")]
    ports: Vec<Forward>,
    /// The address to listen on here; anything but loopback lets other machines in
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Connect stdin and stdout to this port in the agent, as a ProxyCommand does
    #[arg(long, value_name = "PORT", conflicts_with_all = ["ports", "bind"])]
    stdio: Option<Port>,
}

/// One port there, and the one that it has here: the same unless something else is said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Forward {
    local: Option<u16>,
    remote: Port,
}

/// A port in the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Port {
    Number(NonZeroU16),
    /// One of those that the fleet file names.
    Named(PortName),
}

impl FromStr for Port {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let number = text.parse().map(Self::Number);
            return number.map_err(|_| format!("`{text}` is no port: they go from 1 to 65535"));
        }
        text.parse().map(Self::Named).map_err(|_| format!("`{text}` is no port: write PORT or LOCAL:PORT"))
    }
}

impl FromStr for Forward {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let Some((local, remote)) = text.split_once(':') else {
            return Ok(Self { local: None, remote: text.parse()? });
        };
        let local = local.parse().map_err(|_| format!("`{local}` is no local port: they go from 0 to 65535"))?;
        Ok(Self { local: Some(local), remote: remote.parse()? })
    }
}

pub(crate) async fn run(context: &mut Context, args: ForwardArgs) -> CommandResult {
    let name = args.name;
    if let Some(port) = args.stdio {
        return stdio(context, &name, &port).await.map_err(CommandError::of_exec);
    }
    let client = context.place.client().await?;
    let (notices, mut told) = mpsc::channel(NOTICES);
    let declared = Declared::of(&client, &name).await?;
    for (local, remote) in wanted(args.ports, &declared)? {
        declared.refuse_itself(args.bind, local, remote)?;
        let (listener, address) = listen(SocketAddr::new(args.bind, local), &name, remote).await?;
        context.ui.print(format_args!("{address} -> {name}:{remote}"))?;
        tokio::spawn(serve(listener, client.clone(), name.clone(), remote, notices.clone()));
    }
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            Some(notice) = told.recv() => context.ui.warn(notice)?,
            _ = &mut interrupt => return Ok(Exit::SUCCESS),
        }
    }
}

/// Connects stdin and stdout, as a program that runs this one in place of a connection expects it.
async fn stdio(context: &Context, name: &AgentName, port: &Port) -> CommandResult {
    let client = context.place.client().await?;
    let port = match port {
        Port::Number(number) => number.get(),
        Port::Named(_) => Declared::of(&client, name).await?.number(port)?,
    };
    connect(&client, name, port, Console::unattended(Some(io::stdin()), io::stdout(), io::sink())).await?;
    Ok(Exit::SUCCESS)
}

/// The local and the remote port of each that is wanted.
fn wanted(ports: Vec<Forward>, declared: &Declared<'_>) -> Result<Vec<(u16, u16)>, CommandError> {
    if ports.is_empty() {
        let all: Vec<(u16, u16)> = declared.ports.0.values().map(|port| (port.get(), port.get())).collect();
        if all.is_empty() {
            let name = declared.name;
            return Err(CommandError::new(Exit::USAGE, format!("the file names no ports of `{name}`")).hint(format!(
                "say which: vm-agent forward {name} 8080; or name them: vm-agent explain agents.ports"
            )));
        }
        return Ok(all);
    }
    let mut pairs = Vec::new();
    for forward in ports {
        let remote = declared.number(&forward.remote)?;
        pairs.push((forward.local.unwrap_or(remote), remote));
    }
    Ok(pairs)
}

/// What there is to know of an agent's ports.
struct Declared<'a> {
    name: &'a AgentName,
    /// Those that the fleet file names.
    ports: Ports,
    /// Whether they are this host's own, since the agent has no network to itself.
    shared: bool,
}

impl<'a> Declared<'a> {
    async fn of(client: &Client, name: &'a AgentName) -> Result<Self, CommandError> {
        let answer = client.get::<AgentView>(&format!("/agents/{name}")).await;
        let agent = about(client, name, answer).await?.content;
        let shared = agent.driver == Some(DriverName::Local);
        Ok(Self { name, ports: agent.wanted.map(|wanted| wanted.spec.ports).unwrap_or_default(), shared })
    }

    /// Refuses a forward whose connections would come back to it for ever.
    fn refuse_itself(&self, bind: IpAddr, local: u16, remote: u16) -> Result<(), CommandError> {
        if !self.shared || local != remote || !(bind.is_loopback() || bind.is_unspecified()) {
            return Ok(());
        }
        let name = self.name;
        let sentence = format!("`{name}` has no network of its own: its port {remote} is port {remote} here already");
        Err(CommandError::new(Exit::USAGE, sentence)
            .hint(format!("name another port: vm-agent forward {name} 0:{remote} takes any that is free")))
    }

    fn number(&self, port: &Port) -> Result<u16, CommandError> {
        let wanted = match port {
            Port::Number(number) => return Ok(number.get()),
            Port::Named(name) => name,
        };
        let (agent, ports) = (self.name, &self.ports);
        if let Some(number) = ports.0.get(wanted) {
            return Ok(number.get());
        }
        let known: Vec<&str> = ports.0.keys().map(PortName::as_str).collect();
        let error = CommandError::new(Exit::NOT_FOUND, format!("the file names no port `{wanted}` of `{agent}`"));
        Err(if known.is_empty() { error } else { error.hint(format!("it names {}", known.join(", "))) })
    }
}

async fn listen(address: SocketAddr, name: &AgentName, remote: u16) -> Result<(TcpListener, SocketAddr), CommandError> {
    let listen = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    listen.await.map_err(|error| {
        CommandError::io(format_args!("{address} can't be listened on"), &error)
            .hint(format!("name another port: vm-agent forward {name} 0:{remote} takes any that is free"))
    })
}

/// Carries each connection to the agent.
async fn serve(listener: TcpListener, client: Client, name: AgentName, port: u16, notices: mpsc::Sender<String>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let (client, name, notices) = (client.clone(), name.clone(), notices.clone());
                tokio::spawn(async move {
                    if let Err(error) = carry(&client, &name, port, socket).await
                        && !error.is_silent()
                    {
                        // When too many wait to be told, one more says nothing new.
                        let _ = notices.try_send(format!("a connection to port {port}: {error}"));
                    }
                });
            }
            Err(error) => {
                let _ = notices.send(format!("a connection for port {port} could not be taken: {error}")).await;
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

async fn carry(client: &Client, name: &AgentName, port: u16, socket: TcpStream) -> Result<(), CommandError> {
    // A keystroke should not wait for the next one.
    socket.set_nodelay(true)?;
    let (read, write) = socket.into_split();
    connect(client, name, port, Console::unattended(Some(read), write, io::sink())).await
}

/// Connects a port of the agent with this side, until both directions have ended.
async fn connect<I, O>(
    client: &Client,
    name: &AgentName,
    port: u16,
    mut console: Console<I, O, io::Sink>,
) -> Result<(), CommandError>
where
    I: io::AsyncRead + Unpin,
    O: io::AsyncWrite + Unpin,
{
    let session = about(client, name, client.exec(name.as_str()).await).await?;
    let target = StreamTarget::Connect { host: Ipv4Addr::LOCALHOST.to_string(), port };
    match session.run(target, &mut console, |_| {}).await? {
        Some(TaskOutcome::Failed { reason } | TaskOutcome::NotStarted { reason }) => {
            Err(CommandError::new(Exit::FAILURE, reason))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{Peer, http, say};
    use crate::render::samples::healthy;
    use futures::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_tungstenite::tungstenite::Message;
    use vm_agent_schemas::api::{ExecEvent, ExecRequest};
    use vm_agent_schemas::wire::{Channel, Frame};

    fn forward(text: &str) -> Result<Forward, String> {
        text.parse()
    }

    #[test]
    fn ports_are_written_alone_or_in_pairs_by_number_or_by_name() {
        let number = |port| Port::Number(NonZeroU16::new(port).unwrap());
        assert_eq!(forward("80"), Ok(Forward { local: None, remote: number(80) }));
        assert_eq!(forward("8080:80"), Ok(Forward { local: Some(8080), remote: number(80) }));
        assert_eq!(forward("0:web"), Ok(Forward { local: Some(0), remote: Port::Named("web".parse().unwrap()) }));
        for bad in ["", "Web", "1:2:3", "80:0", "0", "70000", "80x", "web:80"] {
            assert!(forward(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_are_looked_up_in_the_file_and_without_any_all_are_meant() {
        let peer = Peer::new();
        let mut agent = healthy("web");
        agent.wanted.as_mut().unwrap().spec.ports = serde_json::from_str(r#"{"admin": 9000, "http": 8080}"#).unwrap();
        let answer = http("200 OK", &serde_json::to_string(&agent).unwrap());
        let name: AgentName = "web".parse().unwrap();
        let cases = [
            (vec![], Ok(vec![(9000, 9000), (8080, 8080)])),
            (vec!["http", "1:admin"], Ok(vec![(8080, 8080), (1, 9000)])),
            (vec!["https"], Err("it names admin, http".to_owned())),
        ];
        for (ports, expected) in cases {
            let ports = ports.into_iter().map(|port| port.parse().unwrap()).collect();
            let (declared, _) = tokio::join!(Declared::of(&peer.client, &name), peer.answer(&answer));
            let found = wanted(ports, &declared.unwrap());
            assert_eq!(found.map_err(|error| error.hints()[0].clone()), expected);
        }
    }

    #[test]
    fn a_port_of_an_agent_without_a_network_of_its_own_is_not_forwarded_to_itself() {
        let name: AgentName = "web".parse().unwrap();
        let is_refused = |shared, bind: &str, local, remote| {
            let declared = Declared { name: &name, ports: Ports::default(), shared };
            declared.refuse_itself(bind.parse().unwrap(), local, remote).is_err()
        };
        assert!(is_refused(true, "127.0.0.1", 80, 80) && is_refused(true, "0.0.0.0", 80, 80));
        assert!(!is_refused(true, "127.0.0.1", 8080, 80) && !is_refused(true, "192.0.2.1", 80, 80));
        assert!(!is_refused(false, "127.0.0.1", 80, 80));
    }

    #[tokio::test]
    async fn a_connection_is_carried_both_ways_and_a_lost_one_leaves_the_port_open() {
        let peer = Peer::new();
        let name: AgentName = "web".parse().unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (listener, address) = listen(any, &name, 80).await.unwrap();
        let (notices, mut told) = mpsc::channel(1);
        let serving = tokio::spawn(serve(listener, peer.client.clone(), name, 80, notices));

        let lost = TcpStream::connect(address).await.unwrap();
        drop(peer.answer_exec().await);
        assert!(told.recv().await.unwrap().starts_with("a connection to port 80: the connection broke off"));
        drop(lost);

        let mut socket = TcpStream::connect(address).await.unwrap();
        let mut far = peer.answer_exec().await;
        let Message::Text(open) = far.next().await.unwrap().unwrap() else { panic!("expected `open`") };
        let ExecRequest::Open { target, .. } = serde_json::from_str(&open).unwrap() else { panic!("{open}") };
        assert_eq!(target, StreamTarget::Connect { host: "127.0.0.1".into(), port: 80 });
        say(&mut far, &ExecEvent::Opened { offset: 0 }).await;
        socket.write_all(b"GET /").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut asked = Vec::new();
        loop {
            let Message::Binary(bytes) = far.next().await.unwrap().unwrap() else { panic!("expected input") };
            let frame = Frame::decode(&bytes).unwrap();
            asked.extend_from_slice(&frame.data);
            if frame.end {
                break;
            }
        }
        assert_eq!(asked, b"GET /");
        let answer = Frame { stream: 0, channel: Channel::Stdout, offset: 0, end: true, data: "200".into() };
        far.send(Message::Binary(answer.encode())).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "200", "its end is told before the stream ends");
        say(&mut far, &ExecEvent::Ended { outcome: TaskOutcome::Exited { code: 0 } }).await;
        serving.abort();
    }
}
