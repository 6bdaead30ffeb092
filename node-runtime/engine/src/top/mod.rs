//! A container's processes as `ps` would show them. Docker runs the host's `ps`; this is its usual part, from
//! `/proc`, so that no program is needed.

mod columns;
mod options;
mod order;
mod process;

use rswarm_runtime::cgroup::Cgroup;

use self::columns::Facts;
use self::options::Layout;
use self::process::Process;

/// What `docker top` shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Top {
    /// The columns' titles.
    pub titles: Vec<String>,
    /// A row for each process, by process id. Only the last cell may contain blanks.
    pub processes: Vec<Vec<String>>,
}

/// The processes of a cgroup. `arguments` are those of `ps`; none at all means `-ef`. Blocks.
///
/// # Errors
/// An option that is not known, or the cgroup's processes cannot be read; in one sentence.
pub(crate) fn of_cgroup(cgroup: &str, arguments: &str) -> Result<Top, String> {
    let layout = options::layout(if arguments.is_empty() { "-ef" } else { arguments });
    // moby puts the program's name before its words, and adds none to its own.
    let layout = layout.map_err(|why| if why.starts_with("error: ") { format!("ps: {why}") } else { why })?;
    let cgroup = Cgroup::at(cgroup.as_ref()).map_err(|failure| failure.to_string())?;
    let pids = cgroup.pids().map_err(|error| error.to_string())?;
    // One that ended meanwhile is not shown.
    let processes: Vec<Process> = pids.into_iter().filter_map(Process::read).collect();
    let facts = Facts::read();
    Ok(table(&layout, &order::ordered(processes, &layout, &facts), &facts))
}

/// As moby reads what `ps` printed: cells are what blanks part, and the last one takes all that is left.
fn table(layout: &Layout, processes: &[Process], facts: &Facts) -> Top {
    let columns = &layout.columns;
    let titles: Vec<String> =
        columns.iter().flat_map(|column| column.title.split_whitespace()).map(str::to_owned).collect();
    let row = |process: &Process| {
        let line: Vec<String> = columns.iter().map(|column| column.kind.cell(process, facts)).collect();
        let line = line.join(" ");
        let mut words = line.split_whitespace();
        let mut cells: Vec<String> =
            words.by_ref().take(titles.len().saturating_sub(1)).map(str::to_owned).collect();
        cells.push(words.collect::<Vec<_>>().join(" "));
        cells
    };
    Top { processes: processes.iter().map(row).collect(), titles }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_as_many_cells_as_there_are_titles_and_the_last_keeps_its_blanks() {
        let me =
            Process::read(i32::try_from(std::process::id()).expect("a process id")).expect("this process");
        let process = Process { arguments: "sh -c 'sleep  1'".into(), ..me };
        let layout = options::layout("-ef").expect("layout");
        let top = table(&layout, &[process], &Facts::read());
        assert_eq!(top.titles, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        assert_eq!(top.processes[0].len(), 8);
        assert_eq!(top.processes[0][1], std::process::id().to_string());
        assert_eq!(top.processes[0][7], "sh -c 'sleep 1'");
    }
}
