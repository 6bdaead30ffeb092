//! In which order processes are shown: by process id, by columns, or as a tree. Pure.

use std::cmp::Ordering;

use super::columns::{Facts, Kind};
use super::options::{Direction, Layout};
use super::process::Process;

/// The processes in the order of the layout, each with its branch where that is a tree.
pub(super) fn ordered(mut processes: Vec<Process>, layout: &Layout, facts: &Facts) -> Vec<Process> {
    processes.sort_by(|a, b| by_columns(a, b, &layout.order, facts).then(a.pid.cmp(&b.pid)));
    if layout.forest { tree(processes) } else { processes }
}

fn by_columns(a: &Process, b: &Process, order: &[(&'static Kind, Direction)], facts: &Facts) -> Ordering {
    let compare = |(kind, direction): &(&'static Kind, Direction)| {
        let ordering = by_value(&(kind.show)(a, facts), &(kind.show)(b, facts));
        if *direction == Direction::Down { ordering.reverse() } else { ordering }
    };
    order.iter().map(compare).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
}

/// Numbers by their value, everything else by its text.
fn by_value(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a.total_cmp(&b),
        _ => a.cmp(b),
    }
}

/// Children below their parents. Those whose parent is outside of the container hang on it: `ps` shows it too,
/// and moby leaves it out afterwards.
fn tree(mut left: Vec<Process>) -> Vec<Process> {
    let is_root = |process: &Process, all: &[Process]| all.iter().all(|other| other.pid != process.parent);
    let all = left.clone();
    let roots: Vec<Process> = left.extract_if(.., |process| is_root(process, &all)).collect();
    let mut shown = Vec::new();
    let mut stack: Vec<(Process, String, bool)> = Vec::new();
    push(&mut stack, roots, "");
    while let Some((mut process, indent, is_last)) = stack.pop() {
        process.branch = format!("{indent} \\_ ");
        let deeper = format!("{indent}{}", if is_last { "    " } else { " |  " });
        let pid = process.pid;
        let children = left.extract_if(.., |child| child.parent == pid).collect();
        push(&mut stack, children, &deeper);
        shown.push(process);
    }
    shown
}

/// The first goes on top.
fn push(stack: &mut Vec<(Process, String, bool)>, siblings: Vec<Process>, indent: &str) {
    let last = siblings.len().saturating_sub(1);
    for (index, process) in siblings.into_iter().enumerate().rev() {
        stack.push((process, indent.to_owned(), index == last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::options::layout;

    fn process(pid: i32, parent: i32, resident_kib: u64) -> Process {
        Process { pid, parent, resident_kib, name: format!("p{pid}"), ..Process::default() }
    }

    fn pids(processes: &[Process]) -> Vec<i32> {
        processes.iter().map(|process| process.pid).collect()
    }

    #[test]
    fn numbers_are_sorted_as_numbers() {
        let all = vec![process(10, 1, 9), process(9, 1, 100), process(11, 1, 9)];
        let by = |arguments: &str| {
            pids(&ordered(all.clone(), &layout(arguments).expect("layout"), &Facts::read()))
        };
        assert_eq!(by("-ef"), [9, 10, 11]);
        assert_eq!(by("-eo pid,rss --sort=rss,-pid"), [11, 10, 9]);
        assert_eq!(by("-eo pid,rss --sort -rss"), [9, 10, 11]);
    }

    #[test]
    fn a_tree_has_children_below_their_parents() {
        let all =
            vec![process(5, 1, 0), process(6, 5, 0), process(7, 6, 0), process(8, 5, 0), process(9, 1, 0)];
        let shown = ordered(all, &layout("-ef --forest").expect("layout"), &Facts::read());
        assert_eq!(pids(&shown), [5, 6, 7, 8, 9]);
        let branches: Vec<&str> = shown.iter().map(|process| process.branch.as_str()).collect();
        assert_eq!(branches, [" \\_ ", " |   \\_ ", " |   |   \\_ ", " |   \\_ ", " \\_ "]);
    }
}
