package varexpand

import (
	"strconv"
	"strings"
)

// condition returns %{if;LEFT;OP;RIGHT;THEN;ELSE}, whose text between the braces is expr.
// Each part is expanded. A backslash protects ; and : and itself never appears; an
// unprotected : outside of variables ends the expression.
func (e *expander) condition(expr string) (string, bool) {
	_, rest, found := strings.Cut(expr, ";")
	if !found {
		e.fail("if: missing parameter(s)")
		return "", false
	}
	parts := splitCondition(rest)
	if len(parts) == 4 {
		parts = append(parts, "")
	}
	if len(parts) != 5 {
		e.fail("if: requires four or five parameters, got %d", len(parts))
		return "", false
	}
	for i, p := range parts {
		var ok bool
		if parts[i], ok = e.expand(p); !ok {
			return "", false
		}
	}
	yes, ok := e.compare(parts[0], parts[1], parts[2])
	switch {
	case !ok:
		return "", false
	case yes:
		return parts[3], true
	}
	return parts[4], true
}

// splitCondition splits at the semicolons that are neither protected nor inside %{}. An
// empty part at the end does not count.
func splitCondition(s string) []string {
	var parts []string
	var part []byte
	depth, percent := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			for i+1 < len(s) && s[i+1] == '\\' {
				i++
			}
			if i++; i < len(s) {
				part = append(part, s[i])
			}
			continue
		case c == '%':
			percent = true
		case percent && c == '{':
			depth++
			percent = false
		case depth > 0 && c == '}':
			depth--
		case depth == 0 && c == ';':
			parts = append(parts, string(part))
			part = part[:0]
			continue
		case depth == 0 && c == ':':
			s = s[:i]
			continue
		}
		part = append(part, s[i])
	}
	if len(part) > 0 {
		parts = append(parts, string(part))
	}
	return parts
}

// compare says whether left OP right holds.
func (e *expander) compare(left, op, right string) (yes, ok bool) {
	order := strings.Compare(left, right)
	switch op {
	case "==", "<", "<=", ">", ">=", "!=":
		var a, b int64
		if a, ok = e.number(left, "lhs"); !ok {
			return false, false
		}
		if b, ok = e.number(right, "rhs"); !ok {
			return false, false
		}
		switch {
		case a < b:
			order = -1
		case a > b:
			order = 1
		default:
			order = 0
		}
	}
	switch op {
	case "==", "eq":
		return order == 0, true
	case "<", "lt":
		return order < 0, true
	case "<=", "le":
		return order <= 0, true
	case ">", "gt":
		return order > 0, true
	case ">=", "ge":
		return order >= 0, true
	case "!=", "ne":
		return order != 0, true
	case "*", "!*":
		return wildcard(left, right) == (op == "*"), true
	case "~", "!~":
		re, err := compileERE(right)
		if err != nil {
			e.fail("if: regex failed: %s", err)
			return false, false
		}
		return re.match(left) == (op == "~"), true
	}
	e.fail("if: Unsupported comparator '%s'", op)
	return false, false
}

func (e *expander) number(s, side string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || s[0] == '+' {
		e.fail("if: %s (%s) is not a number", s, side)
		return 0, false
	}
	return n, true
}

// wildcard says whether mask matches all of s: * is any text, ? any one octet. It takes
// time len(s) * len(mask) at most.
func wildcard(s, mask string) bool {
	i, j := 0, 0
	star, from := -1, 0 // the last * in mask, and where in s what it took ends
	for i < len(s) {
		switch {
		case j < len(mask) && mask[j] == '*':
			star, from = j, i
			j++
		case j < len(mask) && (mask[j] == '?' || mask[j] == s[i]):
			i++
			j++
		case star >= 0:
			from++
			i, j = from, star+1
		default:
			return false
		}
	}
	return strings.Trim(mask[j:], "*") == ""
}
