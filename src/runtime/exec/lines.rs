//! A child's output as lines of bounded length.

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// Longest line passed on, in bytes; what is over is cut and marked. With a thousand lines at once, 4 MiB an attempt.
pub const LINE_BYTES_MAX: usize = 4096;

/// Ends a line that was cut.
const CUT: &str = " …";

/// The next line without its end, or `None` at the end of the output. Holds at most [`LINE_BYTES_MAX`] bytes of a line
/// however long it is. What is not UTF-8 is replaced. Cancel safe only between lines.
pub async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut is_cut = false;
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok((!line.is_empty() || is_cut).then(|| finished(&line, is_cut)));
        }
        let end = chunk.iter().position(|&byte| byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        let room = LINE_BYTES_MAX - line.len();
        is_cut |= part.len() > room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = end.map_or(chunk.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(finished(&line, is_cut)));
        }
    }
}

fn finished(line: &[u8], is_cut: bool) -> String {
    let mut text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
    if is_cut {
        text.push_str(CUT);
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn lines(bytes: &[u8]) -> Vec<String> {
        // A small buffer, so that lines span several reads.
        let mut reader = BufReader::with_capacity(7, bytes);
        let mut found = Vec::new();
        while let Some(line) = next_line(&mut reader).await.unwrap() {
            found.push(line);
        }
        found
    }

    #[tokio::test]
    async fn lines_come_without_their_ends_and_the_last_one_needs_none() {
        assert_eq!(lines(b"one\r\ntwo is longer\n\nlast").await, ["one", "two is longer", "", "last"]);
        assert_eq!(lines(b"").await, Vec::<String>::new());
        assert_eq!(lines(b"bad \xff byte\n").await, ["bad \u{fffd} byte"]);
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_and_the_next_one_is_whole() {
        let mut text = vec![b'x'; LINE_BYTES_MAX * 3];
        text.extend_from_slice(b"\nnext\n");
        let found = lines(&text).await;
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].len(), LINE_BYTES_MAX + CUT.len());
        assert_eq!(found[1], "next");
    }
}
