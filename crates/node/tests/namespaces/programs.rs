//! What runs in the pods.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::{say_alive, until_closed};

pub(crate) fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    match *arguments {
        ["connect", address] => connect(address, None, None),
        ["connect", address, "mark", mark] => connect(address, Some(mark.parse()?), None),
        ["connect", address, "from", source] => connect(address, None, Some(source.parse()?)),
        ["resolve", name] => {
            for address in (name, 80).to_socket_addrs()? {
                println!("{}", address.ip());
            }
            Ok(())
        }
        ["whoami"] => {
            let status = std::fs::read_to_string("/proc/self/status")?;
            let effective =
                status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or("?").trim();
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
            println!("uid {} on {} with {effective}", rustix::process::geteuid().as_raw(), name.trim());
            Ok(())
        }
        ["alive", name] => {
            until_closed(&say_alive(name)?);
            Ok(())
        }
        // Leaves a process in a session of its own, which says when it is there.
        ["leave-daemon", name] => {
            let mut command = Command::new("/proc/self/exe");
            command.args(["program", "alive", name]).stdout(Stdio::null()).stderr(Stdio::null());
            // SAFETY: setsid is a plain system call.
            #[allow(unsafe_code)]
            unsafe {
                command.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into));
            }
            println!("{}", command.spawn()?.id());
            Ok(())
        }
        _ => Err("unknown program".into()),
    }
}

/// Connects and prints what the server says.
fn connect(address: &str, mark: Option<u32>, source: Option<Ipv4Addr>) -> Result<(), Box<dyn Error>> {
    let address: SocketAddr = address.parse()?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::V4(SocketAddrV4::new(source, 0)).into())?;
    }
    socket.connect_timeout(&address.into(), Duration::from_secs(10))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"x")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}
