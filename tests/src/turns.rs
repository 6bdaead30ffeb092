//! Which labs run at the same time. Each has everything of its own, so that all they share is the machine: some
//! beside each other use it better than one, too many would only measure how busy it is, and what measures time has
//! it for itself.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::available_parallelism;

/// Labs of this program.
static LABS: Mutex<Labs> = Mutex::new(Labs { running: 0, alone: false, waiting_alone: 0 });
/// One has ended.
static ENDED: Condvar = Condvar::new();

struct Labs {
    running: usize,
    /// The one that runs wants no other.
    alone: bool,
    /// Those that want no other go first, or they would wait for the last of the others.
    waiting_alone: usize,
}

/// The right to run, until it is dropped. The clock of a test starts after it has this.
pub struct Turn(());

impl Turn {
    /// Waits until few enough labs run, and none that wants to be alone.
    pub fn beside_others() -> Turn {
        let most = available_parallelism().map_or(2, usize::from).max(2);
        Turn::when(|labs| labs.running < most && !labs.alone && labs.waiting_alone == 0, false)
    }

    /// Waits until no other lab runs.
    pub fn alone() -> Turn {
        LABS.lock().unwrap_or_else(PoisonError::into_inner).waiting_alone += 1;
        Turn::when(
            |labs| {
                let free = labs.running == 0;
                labs.waiting_alone -= usize::from(free);
                free
            },
            true,
        )
    }

    fn when(mut free: impl FnMut(&mut Labs) -> bool, alone: bool) -> Turn {
        let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut labs = ENDED.wait_while(labs, |labs| !free(labs)).unwrap_or_else(PoisonError::into_inner);
        labs.running += 1;
        labs.alone = alone;
        Turn(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
        labs.running -= 1;
        labs.alone = false;
        ENDED.notify_all();
    }
}
