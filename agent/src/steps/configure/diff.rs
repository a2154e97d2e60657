//! A line diff for people: what a `configure` step changed in a text file.

/// Most lines of one diff.
const LINES_MAX: usize = 200;
/// Longest part of a line that is shown, in characters.
const LINE_CHARS_MAX: usize = 400;
/// Most changed lines on each side that are compared with one another; beyond, the whole part is
/// shown as replaced. The comparison takes the product of both in time and memory: 250 000 cells.
const COMPARED_MAX: usize = 500;
/// Unchanged lines shown around a change.
const CONTEXT: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line<'a> {
    Same(&'a str),
    Old(&'a str),
    New(&'a str),
}

/// Lines that start with ` `, `-` or `+`; `…` stands for what is left out.
pub fn diff(old: &str, new: &str) -> Vec<String> {
    let old: Vec<&str> = old.lines().collect();
    let new: Vec<&str> = new.lines().collect();
    render(&compare(&old, &new))
}

fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let tail = old_rest
        .iter()
        .rev()
        .zip(new_rest.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let (old_middle, same_tail) = old_rest.split_at(old_rest.len() - tail);
    let new_middle = &new_rest[..new_rest.len() - tail];
    let mut lines: Vec<Line<'a>> = old[..head].iter().map(|line| Line::Same(line)).collect();
    lines.extend(compare_middle(old_middle, new_middle));
    lines.extend(same_tail.iter().map(|line| Line::Same(line)));
    lines
}

/// The longest common subsequence, by the textbook table.
fn compare_middle<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let replaced = || {
        let gone = old.iter().map(|line| Line::Old(line));
        gone.chain(new.iter().map(|line| Line::New(line))).collect()
    };
    if old.len() > COMPARED_MAX || new.len() > COMPARED_MAX {
        return replaced();
    }
    let width = new.len() + 1;
    let mut common = vec![0_u16; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push(Line::Same(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len()
            && (j == new.len() || common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            lines.push(Line::Old(old[i]));
            i += 1;
        } else {
            lines.push(Line::New(new[j]));
            j += 1;
        }
    }
    lines
}

fn render(lines: &[Line<'_>]) -> Vec<String> {
    let changed: Vec<usize> = (0..lines.len())
        .filter(|i| !matches!(lines[*i], Line::Same(_)))
        .collect();
    let near = |i: usize| {
        let next = changed.partition_point(|c| *c < i.saturating_sub(CONTEXT));
        changed.get(next).is_some_and(|c| *c <= i + CONTEXT)
    };
    let mut shown = Vec::new();
    let mut skipped = false;
    for (i, line) in lines.iter().enumerate() {
        if !near(i) {
            skipped = true;
            continue;
        }
        if skipped && !shown.is_empty() {
            shown.push("…".to_owned());
        }
        skipped = false;
        if shown.len() >= LINES_MAX {
            shown.push(format!("… ({} more lines)", lines.len() - i));
            break;
        }
        let (mark, text) = match line {
            Line::Same(text) => (' ', text),
            Line::Old(text) => ('-', text),
            Line::New(text) => ('+', text),
        };
        let cut: String = text.chars().take(LINE_CHARS_MAX).collect();
        shown.push(format!("{mark}{cut}"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffs_show_what_changed_and_a_little_around_it() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases: [(&str, &str, &[&str]); 6] = [
            ("a\nb\n", "a\nb\n", &[]),
            ("", "a\nb\n", &["+a", "+b"]),
            ("a\n", "", &["-a"]),
            ("a\nb\nc\n", "a\nx\nc\n", &[" a", "-b", "+x", " c"]),
            ("1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\nx\n3\n4\n5\n6\n7\n8\ny\n",
             &[" 1", "-2", "+x", " 3", " 4", "…", " 7", " 8", "-9", "+y"]),
            ("a\nb\nc\nd\n", "b\nc\ne\nd\n", &["-a", " b", " c", "+e", " d"]),
        ];
        for (old, new, want) in cases {
            assert_eq!(diff(old, new), want, "{old:?} -> {new:?}");
        }
    }

    #[test]
    fn long_diffs_are_cut() {
        let new: String = (0..10_000).map(|n| format!("{n}\n")).collect();
        let shown = diff("x\n", &new);
        assert_eq!(shown.len(), LINES_MAX + 1);
        assert!(shown.last().unwrap().ends_with("more lines)"));
        assert_eq!(diff("", &"y".repeat(1000))[0].len(), LINE_CHARS_MAX + 1);
    }
}
