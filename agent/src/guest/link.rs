//! The address of a network card, by the kernel's own words: a program for it costs an emulated machine more than
//! everything else that a seed asks of it.

use std::io;

use vm_agent_schemas::guest::Mac;

/// What is said to the kernel, from its headers: a request that is answered, for a link, with an address.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const IFLA_ADDRESS: u16 = 1;

/// How long the request is, in bytes: its header, what tells the link, and an address of six bytes with its own
/// header, in words of four.
const LENGTH: usize = 16 + 16 + 4 + 8;

/// Gives the card with this number an address. It may be up.
#[cfg(target_os = "linux")]
pub(super) fn set_address(index: u32, mac: &Mac) -> io::Result<()> {
    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &request(index, mac), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 256];
    let (count, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    refusal(&answer[..count])
}

#[cfg(not(target_os = "linux"))]
pub(super) fn set_address(_: u32, _: &Mac) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The request.
fn request(index: u32, mac: &Mac) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &u32::try_from(LENGTH).unwrap_or_default().to_ne_bytes());
    put(4, &RTM_NEWLINK.to_ne_bytes());
    put(6, &NLM_F_REQUEST_ACK.to_ne_bytes());
    put(20, &index.to_ne_bytes());
    put(32, &10_u16.to_ne_bytes());
    put(34, &IFLA_ADDRESS.to_ne_bytes());
    for (at, pair) in mac.as_str().split(':').enumerate().take(6) {
        put(36 + at, &[u8::from_str_radix(pair, 16).unwrap_or_default()]);
    }
    bytes
}

/// What the kernel answers: a number, which is none where it did as it was told.
fn refusal(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
    let number = answer.get(16..20).and_then(|bytes| Some(i32::from_ne_bytes(bytes.try_into().ok()?)));
    match (kind, number) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(number)) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_card_and_its_address() {
        let bytes = request(0x0102, &"52:54:00:0a:ff:01".parse().unwrap());
        assert_eq!(bytes[20..24], 0x0102_u32.to_ne_bytes());
        assert_eq!(bytes[36..42], [0x52, 0x54, 0, 0x0a, 0xff, 1]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_understands_the_request_and_says_what_is_in_the_way() {
        // There is no such card; who may not ask is told that instead.
        let error = set_address(u32::MAX / 2, &"52:54:00:0a:ff:01".parse().unwrap()).unwrap_err();
        let expected = [rustix::io::Errno::NODEV, rustix::io::Errno::PERM].map(|it| it.raw_os_error());
        assert!(expected.contains(&error.raw_os_error().unwrap()), "{error}");
    }

    #[test]
    fn an_answer_is_a_number_or_none() {
        let answer = |kind: u16, number: i32| {
            let mut bytes = vec![0; 20];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[16..].copy_from_slice(&number.to_ne_bytes());
            refusal(&bytes)
        };
        assert!(answer(NLMSG_ERROR, 0).is_ok());
        assert_eq!(answer(NLMSG_ERROR, -13).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(answer(3, 0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(refusal(&[]).is_err());
    }
}
