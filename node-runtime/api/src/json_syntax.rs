//! What is wrong with a text that is no JSON, in the words of Go's `encoding/json`: Docker's clients and
//! their tests look for them.

/// Deeper texts are no request; the reader of values has the same bound.
const DEPTH_MAX: usize = 128;

/// Where and why the first value of a text ends wrongly.
enum Fault {
    /// It ends in the middle, or has nothing but space.
    End,
    /// At a character that cannot be there.
    Character(u8, &'static str),
    /// Brackets in more brackets than are looked into.
    Depth,
}

/// The complaint about the first value in `text`; `None` when its syntax is right, or it goes too deep to say.
pub(crate) fn complaint(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    let fault = scanner.value(0).err()?;
    match fault {
        Fault::End if text.iter().all(|byte| is_space(*byte)) => {
            Some("got EOF while reading request body".to_owned())
        }
        Fault::End => Some("unexpected EOF".to_owned()),
        Fault::Character(byte, context) => Some(format!("invalid character {} {context}", quoted(byte))),
        Fault::Depth => None,
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// As Go quotes a byte that it took for a character.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0x07 => r"'\a'".to_owned(),
        0x08 => r"'\b'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        0x0b => r"'\v'".to_owned(),
        0x0c => r"'\f'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        0x00..=0x1f | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Result<u8, Fault> {
        self.text.get(self.at).copied().ok_or(Fault::End)
    }

    fn next(&mut self) -> Result<u8, Fault> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn past_space(&mut self) -> Result<u8, Fault> {
        while is_space(self.peek()?) {
            self.at += 1;
        }
        self.next()
    }

    fn value(&mut self, depth: usize) -> Result<(), Fault> {
        let byte = self.past_space()?;
        self.value_from(byte, depth)
    }

    /// Every way into a value leads through here, an array's first one too: the depth is bounded here alone.
    fn value_from(&mut self, first: u8, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::Depth);
        }
        match first {
            b'{' => self.object(depth + 1),
            b'[' => self.array(depth + 1),
            b'"' => self.string(),
            b'-' => match self.next()? {
                digit @ b'0'..=b'9' => self.number(digit),
                other => Err(Fault::Character(other, "in numeric literal")),
            },
            digit @ b'0'..=b'9' => self.number(digit),
            b't' => self.literal(&[
                (b'r', "in literal true (expecting 'r')"),
                (b'u', "in literal true (expecting 'u')"),
                (b'e', "in literal true (expecting 'e')"),
            ]),
            b'f' => self.literal(&[
                (b'a', "in literal false (expecting 'a')"),
                (b'l', "in literal false (expecting 'l')"),
                (b's', "in literal false (expecting 's')"),
                (b'e', "in literal false (expecting 'e')"),
            ]),
            b'n' => self.literal(&[
                (b'u', "in literal null (expecting 'u')"),
                (b'l', "in literal null (expecting 'l')"),
                (b'l', "in literal null (expecting 'l')"),
            ]),
            other => Err(Fault::Character(other, "looking for beginning of value")),
        }
    }

    fn literal(&mut self, rest: &[(u8, &'static str)]) -> Result<(), Fault> {
        for (expected, context) in rest {
            match self.next()? {
                byte if byte == *expected => {}
                other => return Err(Fault::Character(other, context)),
            }
        }
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<(), Fault> {
        let mut byte = self.past_space()?;
        if byte == b'}' {
            return Ok(());
        }
        loop {
            if byte != b'"' {
                return Err(Fault::Character(byte, "looking for beginning of object key string"));
            }
            self.string()?;
            match self.past_space()? {
                b':' => {}
                other => return Err(Fault::Character(other, "after object key")),
            }
            self.value(depth)?;
            match self.past_space()? {
                b',' => byte = self.past_space()?,
                b'}' => return Ok(()),
                other => return Err(Fault::Character(other, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Fault> {
        let byte = self.past_space()?;
        if byte == b']' {
            return Ok(());
        }
        self.value_from(byte, depth)?;
        loop {
            match self.past_space()? {
                b',' => self.value(depth)?,
                b']' => return Ok(()),
                other => return Err(Fault::Character(other, "after array element")),
            }
        }
    }

    /// After its opening quotation mark.
    fn string(&mut self) -> Result<(), Fault> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                control @ 0x00..=0x1f => return Err(Fault::Character(control, "in string literal")),
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        match self.next()? {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => Ok(()),
            b'u' => {
                for _ in 0..4 {
                    let digit = self.next()?;
                    if !digit.is_ascii_hexdigit() {
                        return Err(Fault::Character(digit, "in \\u hexadecimal character escape"));
                    }
                }
                Ok(())
            }
            other => Err(Fault::Character(other, "in string escape code")),
        }
    }

    /// After its first digit. What follows a number is judged by what holds it.
    fn number(&mut self, first: u8) -> Result<(), Fault> {
        if first != b'0' {
            self.digits();
        }
        if self.peek().is_ok_and(|byte| byte == b'.') {
            self.at += 1;
            self.some_digits("after decimal point in numeric literal")?;
        }
        if self.peek().is_ok_and(|byte| matches!(byte, b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            self.some_digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn some_digits(&mut self, context: &'static str) -> Result<(), Fault> {
        match self.next()? {
            b'0'..=b'9' => {
                self.digits();
                Ok(())
            }
            other => Err(Fault::Character(other, context)),
        }
    }

    fn digits(&mut self) {
        while self.peek().is_ok_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every text is what `json.NewDecoder(…).Decode` of Go 1.19 says.
    #[test]
    fn complaints_are_gos() {
        for (text, expected) in [
            ("{invalid json", "invalid character 'i' looking for beginning of object key string"),
            ("invalid", "invalid character 'i' looking for beginning of value"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1}", "invalid character '}' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("[01]", "invalid character '1' after array element"),
            ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
            ("{\"a\":\"\\x\"}", "invalid character 'x' in string escape code"),
            ("{\"a\":\"\\u00g0\"}", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("trye", "invalid character 'y' in literal true (expecting 'u')"),
            ("'a'", "invalid character '\\'' looking for beginning of value"),
            ("\u{e4}", "invalid character '\u{c3}' looking for beginning of value"),
            ("{\"a\":", "unexpected EOF"),
            ("{", "unexpected EOF"),
            (" \n", "got EOF while reading request body"),
        ] {
            assert_eq!(complaint(text.as_bytes()).as_deref(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn whatever_is_right_has_no_complaint() {
        for text in ["{}", "[]", " {\"a\":[1,-0.5e+3,true,false,null,\"\\u00e4\\n\"]} rest", "0", "\"\""] {
            assert_eq!(complaint(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn brackets_without_end_do_not_exhaust_the_stack() {
        for opening in ["[", "{\"a\":", "[0,", "[{\"a\":["] {
            assert_eq!(complaint(opening.repeat(1 << 20).as_bytes()), None, "{opening}");
        }
    }
}
