use clap::Args;
use vm_agent_schemas::fleet::HubSettings;
use vm_agent_schemas::names::FleetName;
use vm_agent_schemas::net::{HostPort, Listen};
use vm_agent_schemas::units::Span;

use crate::Context;
use crate::exit::{CommandError, CommandResult, Exit};

/// Run a controller in the foreground, until SIGTERM or Ctrl-C
///
/// For service managers; `vm-agent up` starts one by itself. The machines go on without it.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    /// The fleet that a new state folder is for [default: the one that it belongs to, else `default`]
    #[arg(long, value_name = "NAME")]
    fleet: Option<FleetName>,
    /// Where runtimes connect: `auto`, or an IP address and a port
    #[arg(long, value_name = "ADDRESS")]
    hub_listen: Option<Listen>,
    /// The address of the hub that machines are told, where it is another one: behind NAT or a proxy
    #[arg(long, value_name = "HOST:PORT")]
    hub_advertise: Option<HostPort>,
    /// Where the HTTP API listens
    #[arg(long, value_name = "ADDRESS")]
    api_listen: Option<Listen>,
    /// Where the dashboard listens
    #[arg(long, value_name = "ADDRESS")]
    dashboard_listen: Option<Listen>,
    /// How often a runtime reports its health
    #[arg(long, value_name = "SPAN")]
    heartbeat: Option<Span>,
    /// Don't watch the fleet file: a change takes effect with `vm-agent apply` alone
    #[arg(long)]
    no_watch: bool,
    /// Begin a session of its own, away from the terminal that started it
    #[arg(long, hide = true)]
    own_session: bool,
}

pub(crate) async fn run(context: &mut Context, args: ControllerArgs) -> CommandResult {
    if args.own_session {
        // It fails for the leader of a process group only, which is away from others' Ctrl-C already.
        let _ = rustix::process::setsid();
    }
    let program = std::env::current_exe()
        .map_err(|error| CommandError::io("the path of this program can't be found out", &error))?;
    log();
    let hub = HubSettings {
        listen: args.hub_listen,
        advertise: args.hub_advertise,
        api_listen: args.api_listen,
        dashboard_listen: args.dashboard_listen,
        heartbeat: args.heartbeat,
    };
    let state_dir = context.place.here("vm-agent controller")?.to_owned();
    let options = vm_agent_daemon::Options {
        state_dir,
        hub,
        fleet: args.fleet,
        program,
        up: args.own_session,
        expects_file: args.own_session,
        watch: !args.no_watch,
    };
    match vm_agent_daemon::run(options).await {
        Ok(()) => Ok(Exit::SUCCESS),
        Err(error) => Err(CommandError::from_daemon(&error)),
    }
}

/// Has the controller's log written to stderr; VM_AGENT_LOG chooses how much of it.
fn log() {
    use tracing_subscriber::filter::{EnvFilter, LevelFilter};
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).with_env_var("VM_AGENT_LOG");
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .init();
}
