//! The images of labs as archives that are made once, whatever number of hosts imports them. They have no names, so
//! nothing of them is left when the tests end.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::harness::{binary, run};

/// An archive of a root directory.
pub struct Archive {
    file: Mutex<Option<File>>,
    fill: fn(&Path) -> Result<()>,
}

/// The binary under test, which serves a page as `whoami`, without what only debuggers read: two thirds of it.
pub static DEMO: Archive = Archive {
    file: Mutex::new(None),
    fill: |root| {
        let mut strip = Command::new("strip");
        run(strip.arg("-o").arg(root.join("rswarm")).arg(binary())).map(drop)
    },
};

/// Busybox with a link for each of its commands.
pub static BUSYBOX: Archive = Archive { file: Mutex::new(None), fill: busybox };

impl Archive {
    /// A path that other programs can read it by as long as this one runs.
    pub fn path(&'static self) -> Result<String> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = match &*file {
            Some(made) => made.as_raw_fd(),
            None => file.insert(self.make()?).as_raw_fd(),
        };
        Ok(format!("/proc/{}/fd/{descriptor}", std::process::id()))
    }

    fn make(&self) -> Result<File> {
        let root = tempfile::tempdir()?;
        (self.fill)(root.path())?;
        let archive = tempfile::NamedTempFile::new()?;
        run(Command::new("tar").arg("-C").arg(root.path()).arg("-cf").arg(archive.path()).arg("."))?;
        Ok(archive.into_file())
    }
}

fn busybox(root: &Path) -> Result<()> {
    for folder in ["bin", "etc", "tmp", "root"] {
        std::fs::create_dir(root.join(folder))?;
    }
    let busybox = root.join("bin/busybox");
    std::fs::copy("/usr/bin/busybox", &busybox).or_else(|_| std::fs::copy("/bin/busybox", &busybox))?;
    run(Command::new("/bin/sh").current_dir(root.join("bin")).args([
        "-c",
        "for applet in $(./busybox --list); do [ $applet = busybox ] || ln -s busybox $applet; done",
    ]))?;
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    Ok(std::fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?)
}
