//! The command line of a machine: a pure function of the machine, its image and the host. QEMU is started
//! in the machine's folder, so all paths of the machine are short and relative.

use std::path::Path;

use vm_agent_schemas::guest::CHANNEL_NAME;

use super::host::{Acceleration, Host};
use super::machine::{CHANNEL, MONITOR, Machine, PID, SEED_DISK};
use super::snapshots::RAM;

/// How much of the console is kept, in bytes. In QEMU's memory: a guest that writes without end fills no
/// disk of the host.
pub(super) const CONSOLE_KEPT: u32 = 64 * 1024;

/// The name under which QEMU keeps it.
pub(super) const CONSOLE: &str = "console";

/// How much memory QEMU may take for code that it has translated, in MiB. Without a bound it takes a
/// gigabyte.
const TRANSLATED_MIB: u32 = 256;

/// What the kernel of an image that is booted directly is told. The mitigations cost an emulated processor
/// much and protect nobody there: all of the machine is one agent's. An emulated timer on a host under load
/// ticks too late for the check of it, which ends the boot.
const KERNEL_COMMAND_LINE: &str =
    "root=/dev/vda rootfstype=ext4 rw console=ttyS0 quiet systemd.show_status=0 mitigations=off no_timer_check";

/// A kernel that QEMU loads itself, and its initial memory disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
}

/// The device that is the machine's disk, and what is between its network card and the world.
pub(super) const DISK_DEVICE: &str = "disk0";
pub(super) const NETWORK: &str = "net0";

/// What a machine is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// For itself.
    Own,
    /// To be copied: what it has in its memory is to be a file in the end.
    Copies,
}

/// The arguments of a machine's QEMU. One that goes on from a memory has it as its stdin, and stands still once it
/// is loaded. All else has to be as it was when the memory was saved.
pub(super) fn arguments(machine: &Machine, kernel: Option<Kernel<'_>>, host: &Host, used: Use) -> Vec<String> {
    let mut arguments = Arguments::default();
    // The name shows in the host's list of processes.
    arguments.pair("-name", format!("{0},process=vm-agent-{0}", machine.name));
    for flag in ["-nodefaults", "-no-user-config"] {
        arguments.flag(flag);
    }
    arguments.pair("-display", "none");
    // A machine that powers itself off stays until that has been seen: nothing else tells it from a crash.
    arguments.flag("-no-shutdown");
    if host.sandbox {
        arguments.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    processor(&mut arguments, machine, host.acceleration, used);
    if let Some(Kernel { kernel, initrd }) = kernel {
        arguments.pair("-kernel", as_text(kernel));
        arguments.pair("-initrd", as_text(initrd));
        arguments.pair("-append", KERNEL_COMMAND_LINE);
    }
    disks(&mut arguments, machine);
    arguments.pair("-netdev", format!("user,id={NETWORK}"));
    arguments.pair("-device", format!("virtio-net-pci,netdev={NETWORK},mac={},romfile=", machine.mac));
    arguments.pair("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_KEPT}"));
    arguments.pair("-serial", format!("chardev:{CONSOLE}"));
    arguments.pair("-device", "virtio-rng-pci");
    arguments.pair("-device", "virtio-serial-pci");
    arguments.pair("-chardev", format!("socket,id=channel,path={CHANNEL},server=on,wait=off"));
    arguments.pair("-device", format!("virtserialport,chardev=channel,name={CHANNEL_NAME}"));
    arguments.pair("-qmp", format!("unix:{MONITOR},server=on,wait=off"));
    arguments.pair("-pidfile", PID);
    if let Some(resume) = &machine.resume {
        // One that begins with a file has to be told so before it loads the rest.
        let incoming = if resume.memory.warm.is_some() { "defer" } else { LOADED_FROM };
        arguments.pair("-incoming", incoming);
        arguments.flag("-S");
    }
    arguments.0
}

/// Where a machine loads its memory from: its stdin.
pub(super) const LOADED_FROM: &str = "fd:0";

/// The name of a machine's memory, which is also the one that it has where nobody gives it any.
const MEMORY_NAME: &str = "pc.ram";

fn processor(arguments: &mut Arguments, machine: &Machine, acceleration: Acceleration, used: Use) {
    let kibibytes = machine.sizes.memory.bytes() / 1024;
    let warm = machine.resume.as_ref().filter(|resume| resume.memory.warm.is_some());
    // What a copy changes in its memory is its own, and what it does not it shares with all others.
    let file = match used {
        Use::Copies => Some((RAM.to_owned(), "on")),
        Use::Own => warm.map(|resume| (format!("{}/{RAM}", resume.from), "off")),
    };
    if let Some((file, share)) = &file {
        let memory = format!("memory-backend-file,id={MEMORY_NAME},x-use-canonical-path-for-ramblock-id=off");
        arguments.pair("-object", format!("{memory},size={kibibytes}k,mem-path={file},share={share}"));
        arguments.pair("-machine", format!("pc,memory-backend={MEMORY_NAME}"));
    } else {
        arguments.pair("-machine", "pc");
    }
    // By this a guest that boots again tells that it is still the machine that its seed was given to.
    arguments.pair("-uuid", machine.machine_id.hyphenated());
    // Tells a guest's kernel that it goes on as a copy, and has it draw new randomness.
    arguments.pair("-device", "vmgenid,guid=auto");
    let (accelerator, cpu) = match acceleration {
        Acceleration::Kvm => ("kvm".to_owned(), "host"),
        Acceleration::Hvf => ("hvf".to_owned(), "host"),
        Acceleration::Emulation => (format!("tcg,thread=multi,tb-size={TRANSLATED_MIB}"), "max"),
    };
    arguments.pair("-accel", accelerator);
    arguments.pair("-cpu", cpu);
    arguments.pair("-smp", machine.sizes.cpus.to_string());
    arguments.pair("-m", format!("{kibibytes}k"));
}

fn disks(arguments: &mut Arguments, machine: &Machine) {
    let layer = machine.disk.file();
    let disk = format!("driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={layer}");
    arguments.pair("-blockdev", disk);
    arguments.pair("-device", format!("virtio-blk-pci,drive=disk,id={DISK_DEVICE}"));
    let seed = format!("driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename={SEED_DISK}");
    arguments.pair("-blockdev", seed);
    arguments.pair("-device", "virtio-blk-pci,drive=seed,id=seed0");
}

/// The path as text: `-kernel` and `-initrd` take it as it is, commas included.
fn as_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_owned(), value.into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::an_order;
    use crate::qemu::layers::Layer;
    use crate::qemu::machine::{Memory, Resume};
    use vm_agent_schemas::ids::Digest;

    fn machine() -> Machine {
        let order = an_order("web");
        let machine = Machine::new(&order.instance, &order.seed, order.sizes, Digest::of(b"image"));
        let machine_id = "0123456789abcdef0123456789abcdef".parse().unwrap();
        Machine { mac: "52:54:00:12:34:56".parse().unwrap(), machine_id, ..machine }
    }

    fn shown(kernel: Option<Kernel<'_>>, acceleration: Acceleration, sandbox: bool) -> String {
        let host = Host { version: "7.2.0".into(), acceleration, reason: String::new(), sandbox };
        let mut text = String::new();
        for argument in arguments(&machine(), kernel, &host, Use::Own) {
            let begins = argument.starts_with('-');
            text.push_str(if text.is_empty() {
                ""
            } else if begins {
                "\n"
            } else {
                " "
            });
            text.push_str(&argument);
        }
        text
    }

    #[test]
    fn the_light_image_is_booted_directly() {
        let kernel = Kernel { kernel: Path::new("/images/abc/vmlinuz"), initrd: Path::new("/images/abc/initrd") };
        insta::assert_snapshot!(shown(Some(kernel), Acceleration::Emulation, true), @"
        -name web,process=vm-agent-web
        -nodefaults
        -no-user-config
        -display none
        -no-shutdown
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
        -machine pc
        -uuid 01234567-89ab-cdef-0123-456789abcdef
        -device vmgenid,guid=auto
        -accel tcg,thread=multi,tb-size=256
        -cpu max
        -smp 1
        -m 1048576k
        -kernel /images/abc/vmlinuz
        -initrd /images/abc/initrd
        -append root=/dev/vda rootfstype=ext4 rw console=ttyS0 quiet systemd.show_status=0 mitigations=off no_timer_check
        -blockdev driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename=disk.qcow2
        -device virtio-blk-pci,drive=disk,id=disk0
        -blockdev driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename=seed.img
        -device virtio-blk-pci,drive=seed,id=seed0
        -netdev user,id=net0
        -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile=
        -chardev ringbuf,id=console,size=65536
        -serial chardev:console
        -device virtio-rng-pci
        -device virtio-serial-pci
        -chardev socket,id=channel,path=channel.sock,server=on,wait=off
        -device virtserialport,chardev=channel,name=vm-agent.0
        -qmp unix:qmp.sock,server=on,wait=off
        -pidfile qemu.pid
        ");
    }

    #[test]
    fn the_memory_of_a_machine_that_is_copied_is_a_file_which_its_copies_read_and_never_write() {
        let host =
            Host { version: "7.2.0".into(), acceleration: Acceleration::Kvm, reason: String::new(), sandbox: true };
        let about_memory = |machine: &Machine, used| {
            let all = arguments(machine, None, &host, used);
            let pairs = all.windows(2).filter(|pair| ["-object", "-machine", "-m", "-incoming"].contains(&&*pair[0]));
            pairs.map(|pair| pair.join(" ")).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(about_memory(&machine(), Use::Copies), @"
        -object memory-backend-file,id=pc.ram,x-use-canonical-path-for-ramblock-id=off,size=1048576k,mem-path=ram,share=on
        -machine pc,memory-backend=pc.ram
        -m 1048576k
        ");
        let memory = Memory { warm: Some(Digest::of(b"key")), ..Memory::of(&machine(), &host) };
        let resume = Resume { from: "saved-1".into(), over: Layer::first(), memory };
        insta::assert_snapshot!(about_memory(&Machine { resume: Some(resume), ..machine() }, Use::Own), @"
        -object memory-backend-file,id=pc.ram,x-use-canonical-path-for-ramblock-id=off,size=1048576k,mem-path=saved-1/ram,share=off
        -machine pc,memory-backend=pc.ram
        -m 1048576k
        -incoming defer
        ");
    }

    #[test]
    fn a_cloud_image_boots_from_its_disk_with_the_processor_of_the_host() {
        insta::assert_snapshot!(shown(None, Acceleration::Kvm, false), @"
        -name web,process=vm-agent-web
        -nodefaults
        -no-user-config
        -display none
        -no-shutdown
        -machine pc
        -uuid 01234567-89ab-cdef-0123-456789abcdef
        -device vmgenid,guid=auto
        -accel kvm
        -cpu host
        -smp 1
        -m 1048576k
        -blockdev driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename=disk.qcow2
        -device virtio-blk-pci,drive=disk,id=disk0
        -blockdev driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename=seed.img
        -device virtio-blk-pci,drive=seed,id=seed0
        -netdev user,id=net0
        -device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile=
        -chardev ringbuf,id=console,size=65536
        -serial chardev:console
        -device virtio-rng-pci
        -device virtio-serial-pci
        -chardev socket,id=channel,path=channel.sock,server=on,wait=off
        -device virtserialport,chardev=channel,name=vm-agent.0
        -qmp unix:qmp.sock,server=on,wait=off
        -pidfile qemu.pid
        ");
    }
}
