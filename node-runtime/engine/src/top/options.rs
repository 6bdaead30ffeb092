//! The options of `ps` that choose columns. Pure. All processes of the container are always shown, so options
//! that choose processes by broad classes are taken and change nothing.
// man: ps(1)

use super::columns::{self, Kind};

/// A column to show.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// Its kind's, or one of the user's own, as in `-o pid=PROC`.
    pub title: String,
    pub kind: &'static Kind,
}

/// What is shown, and in which order.
#[derive(Debug)]
pub(super) struct Layout {
    pub columns: Vec<Column>,
    /// Columns to sort by, each perhaps from its greatest on.
    pub order: Vec<(&'static Kind, Direction)>,
    /// Commands are drawn as a tree.
    pub forest: bool,
}

/// Where a sorted column begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

const FULL: &str = "uid_name pid ppid c stime tname time cmd";
const EXTRA_FULL: &str = "uid_name pid ppid c sz rss psr stime tname time cmd";
const LONG: &str = "f s uid pid ppid c opri ni addr sz wchan tname time ucmd";
const FULL_LONG: &str = "f s uid_name pid ppid c opri ni addr sz wchan stime tname time cmd";
const JOBS: &str = "pid pgid sid tname time ucmd";
const FULL_JOBS: &str = "uid_name pid ppid pgid sid c stime tname time cmd";
const PLAIN: &str = "pid tname time ucmd";
const BSD: &str = "pid tname stat bsdtime args";
const BSD_USER: &str = "user pid pcpu pmem vsz rss tname stat start_time bsdtime args";
const BSD_LONG: &str = "f uid pid ppid priority ni vsz rss wchan stat tname bsdtime args";
const BSD_JOBS: &str = "ppid pid pgid sid tname tpgid stat uid bsdtime args";

/// What the options amount to.
#[derive(Debug, Default)]
struct Format {
    own: Vec<Column>,
    order: Vec<(&'static Kind, Direction)>,
    forest: bool,
    full: bool,
    extra_full: bool,
    long: bool,
    jobs: bool,
    bsd: bool,
    user: bool,
}

/// What `arguments` ask for.
///
/// # Errors
/// In the words of `ps`, or of moby where a listing without process ids is asked for.
pub(super) fn layout(arguments: &str) -> Result<Layout, String> {
    let mut format = Format::default();
    let mut words = arguments.split_whitespace();
    while let Some(word) = words.next() {
        match word.strip_prefix("--") {
            Some(option) => long_option(&mut format, option, &mut words)?,
            // So written by many; `ps` takes it for BSD's.
            None if word == "-aux" => short_options(&mut format, "aux", false, &mut words)?,
            None => match word.strip_prefix('-') {
                Some(letters) => short_options(&mut format, letters, true, &mut words)?,
                None => short_options(&mut format, word, false, &mut words)?,
            },
        }
    }
    let columns = if format.own.is_empty() { predefined(&format)? } else { format.own };
    if columns.iter().any(|column| column.title == "PID") {
        Ok(Layout { columns, order: format.order, forest: format.forest })
    } else {
        Err("Couldn't find PID field in ps output".to_owned())
    }
}

fn predefined(format: &Format) -> Result<Vec<Column>, String> {
    let text = match format {
        Format { bsd: true, user: true, .. } => BSD_USER,
        Format { bsd: true, long: true, .. } => BSD_LONG,
        Format { bsd: true, jobs: true, .. } => BSD_JOBS,
        Format { bsd: true, .. } => BSD,
        Format { full: true, long: true, .. } => FULL_LONG,
        Format { full: true, jobs: true, .. } => FULL_JOBS,
        Format { long: true, .. } => LONG,
        Format { extra_full: true, .. } => EXTRA_FULL,
        Format { full: true, .. } => FULL,
        Format { jobs: true, .. } => JOBS,
        _ => PLAIN,
    };
    text.split(' ').map(named).collect()
}

fn long_option<'a>(
    format: &mut Format,
    option: &str,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    match name {
        "format" => own_columns(format, value.or_else(|| words.next())),
        "sort" => order(format, value.or_else(|| words.next())),
        "forest" => {
            format.forest = true;
            Ok(())
        }
        // The width of a screen that there is not.
        "cols" | "columns" | "width" | "lines" | "rows" => match value.or_else(|| words.next()) {
            Some(number) if number.parse::<u32>().is_ok() => Ok(()),
            _ => Err("error: number of columns must follow --cols, --width, or --columns".to_owned()),
        },
        "headers" => Ok(()),
        "no-headers" | "no-headings" => Err("Couldn't find PID field in ps output".to_owned()),
        _ => Err("error: unknown gnu long option".to_owned()),
    }
}

fn short_options<'a>(
    format: &mut Format,
    letters: &str,
    is_unix: bool,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    format.bsd |= !is_unix;
    for (index, letter) in letters.char_indices() {
        match (is_unix, letter) {
            (_, 'o') => {
                let rest = &letters[index + 1..];
                return own_columns(
                    format,
                    Some(rest).filter(|rest| !rest.is_empty()).or_else(|| words.next()),
                );
            }
            (_, 'l') => format.long = true,
            (_, 'j') => format.jobs = true,
            (true, 'H') | (false, 'f') => format.forest = true,
            (false, 'k') => {
                let rest = &letters[index + 1..];
                return order(format, Some(rest).filter(|rest| !rest.is_empty()).or_else(|| words.next()));
            }
            (true, 'f') => format.full = true,
            (true, 'F') => format.extra_full = true,
            (false, 'u') => format.user = true,
            // Which processes, and how wide: all of them, wide enough.
            (true, 'e' | 'A' | 'a' | 'd' | 'N') | (false, 'a' | 'x' | 'g') | (_, 'w') => {}
            (true, _) => return Err("error: unsupported SysV option".to_owned()),
            (false, _) => return Err("error: unsupported option (BSD syntax)".to_owned()),
        }
    }
    Ok(())
}

/// `-rss,+pid`.
fn order(format: &mut Format, text: Option<&str>) -> Result<(), String> {
    let Some(text) = text else {
        return Err("error: long sort specification must follow 'k'".to_owned());
    };
    for key in text.split(',') {
        let (direction, name) = match (key.strip_prefix('-'), key.strip_prefix('+')) {
            (Some(name), _) => (Direction::Down, name),
            (None, Some(name)) => (Direction::Up, name),
            (None, None) => (Direction::Up, key),
        };
        let kind = columns::ALL.iter().find(|kind| kind.names.contains(&name));
        format.order.push((kind.ok_or("error: unknown sort specifier")?, direction));
    }
    Ok(())
}

/// `pid,user=OWNER`: a title takes the rest of its word, commas too.
fn own_columns(format: &mut Format, text: Option<&str>) -> Result<(), String> {
    let Some(text) = text else { return Err("error: format specification must follow -o".to_owned()) };
    let (names, title) = text.split_once('=').map_or((text, None), |(names, title)| (names, Some(title)));
    for name in names.split(',').filter(|name| !name.is_empty()) {
        format.own.push(named(name)?);
    }
    let Some(last) = format.own.last_mut() else { return Err("error: empty format list".to_owned()) };
    if let Some(title) = title {
        // moby: a process id by another column's figures would be a lie.
        if title.starts_with("PID") && !std::ptr::eq(last.kind, named("pid")?.kind) {
            return Err(format!("specifying \"{}={title}\" is not allowed", last.kind.names[0]));
        }
        title.clone_into(&mut last.title);
    }
    Ok(())
}

fn named(name: &str) -> Result<Column, String> {
    let kind = columns::ALL.iter().find(|kind| kind.names.contains(&name));
    let kind = kind.ok_or_else(|| format!("error: unknown user-defined format specifier \"{name}\""))?;
    Ok(Column { title: kind.title.to_owned(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(arguments: &str) -> Result<String, String> {
        let columns = layout(arguments)?.columns;
        Ok(columns.iter().map(|column| column.title.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_usual_options_give_the_titles_of_ps() {
        let aux = "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND";
        for (arguments, expected) in [
            ("-ef", "UID PID PPID C STIME TTY TIME CMD"),
            ("-e -f", "UID PID PPID C STIME TTY TIME CMD"),
            ("aux", aux),
            ("-aux", aux),
            ("auxww", aux),
            ("-eF", "UID PID PPID C SZ RSS PSR STIME TTY TIME CMD"),
            ("-el", "F S UID PID PPID C PRI NI ADDR SZ WCHAN TTY TIME CMD"),
            ("ax", "PID TTY STAT TIME COMMAND"),
            ("-e", "PID TTY TIME CMD"),
            ("alx", "F UID PID PPID PRI NI VSZ RSS WCHAN STAT TTY TIME COMMAND"),
            ("ajx", "PPID PID PGID SID TTY TPGID STAT UID TIME COMMAND"),
            ("-o pid,cmd", "PID CMD"),
            ("-eo pid,user=OWNER -o comm", "PID OWNER COMMAND"),
            ("axo pid,args", "PID COMMAND"),
            ("--format pid,rss", "PID RSS"),
        ] {
            assert_eq!(titles(arguments).as_deref(), Ok(expected), "{arguments}");
        }
    }

    #[test]
    fn order_and_tree_are_understood() {
        let of = |arguments| {
            let layout = layout(arguments).expect("layout");
            let order = layout.order.iter().map(|(kind, direction)| (kind.names[0], *direction));
            (order.collect::<Vec<_>>(), layout.forest)
        };
        assert_eq!(of("-ef --forest"), (vec![], true));
        assert_eq!(of("axf"), (vec![], true));
        assert_eq!(
            of("-eo pid,args --sort=-rss,+pid"),
            (vec![("rss", Direction::Down), ("pid", Direction::Up)], false)
        );
        assert_eq!(of("axk -pid"), (vec![("pid", Direction::Down)], false));
    }

    #[test]
    fn what_ps_or_docker_refuses_is_refused() {
        for (arguments, expected) in [
            ("-o cmd", "Couldn't find PID field in ps output"),
            ("-ef --no-headers", "Couldn't find PID field in ps output"),
            ("-o pid,magic", "error: unknown user-defined format specifier \"magic\""),
            ("-o", "error: format specification must follow -o"),
            ("-o pid -o cmd=PID", "specifying \"cmd=PID\" is not allowed"),
            ("-eZ", "error: unsupported SysV option"),
            ("auxQ", "error: unsupported option (BSD syntax)"),
            ("--color", "error: unknown gnu long option"),
            ("-ef --sort=magic", "error: unknown sort specifier"),
        ] {
            assert_eq!(titles(arguments).as_ref().map_err(String::as_str), Err(expected), "{arguments}");
        }
    }
}
