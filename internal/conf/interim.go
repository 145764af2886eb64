package conf

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

func interim(typ string, enum []string, v string) (string, error) {
	switch typ {
	case "bool":
		switch {
		case strings.EqualFold(v, "yes"), strings.EqualFold(v, "y"), v == "1":
			return "yes", nil
		case strings.EqualFold(v, "no"):
			return "no", nil
		}
		return "", fmt.Errorf("Invalid boolean value: %s (use yes or no)", v)
	case "enum":
		if !slices.Contains(enum, v) {
			return "", fmt.Errorf("Invalid value: %s", v)
		}
	case "port":
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return "", fmt.Errorf("Invalid port number %s", v)
		}
		return fmt.Sprint(n), nil
	case "uint", "octal":
		if typ == "octal" && strings.HasPrefix(v, "0") {
			n, err := strconv.ParseUint(v, 8, 64)
			if err != nil {
				return "", fmt.Errorf("Invalid number: %s", v)
			}
			return fmt.Sprintf("0%o", n), nil
		}
		n, err := strconv.ParseUint(v, 10, 32)
		switch {
		case err == nil && typ == "octal":
			return fmt.Sprintf("0%o", n), nil
		case err == nil:
			return fmt.Sprint(n), nil
		case errors.Is(err, strconv.ErrRange):
			return "", fmt.Errorf("Invalid number %s: Number too large", v)
		case strings.HasPrefix(v, "-"):
			return "", fmt.Errorf("Invalid number %s: Number too small", v)
		}
		return "", fmt.Errorf("Invalid number %s: Not a valid number", v)
	case "size":
		i := 0
		for i < len(v) && v[i] >= '0' && v[i] <= '9' {
			i++
		}
		n, err := strconv.ParseUint(v[:i], 10, 64)
		if err != nil {
			return "", fmt.Errorf("Invalid size: %s", v)
		}
		u := strings.ToUpper(strings.TrimLeft(v[i:], " "))
		k := 0
		if u != "" && u != "B" {
			k = strings.IndexByte("BKMGT", u[0])
			if k <= 0 || u[1:] != "" && u[1:] != "B" && u[1:] != "I" && u[1:] != "IB" {
				return "", fmt.Errorf("Invalid size: %s", v)
			}
		}
		if bits.Len64(n)+10*k > 64 {
			return "", fmt.Errorf("Size is too large: %s", v)
		}
		n <<= 10 * k
		if n == 0 {
			return "0", nil
		}
		units := []string{"B", "k", "M", "G", "T"}
		k = 0
		for n%1024 == 0 && k < 4 {
			n /= 1024
			k++
		}
		return fmt.Sprintf("%d %s", n, units[k]), nil
	case "time", "msecs":
		i := 0
		for i < len(v) && v[i] >= '0' && v[i] <= '9' {
			i++
		}
		n, err := strconv.ParseUint(v[:i], 10, 32)
		if err != nil {
			return "", fmt.Errorf("Invalid time interval: %s", v)
		}
		u := strings.ToLower(strings.TrimLeft(v[i:], " "))
		if u == "" && n != 0 {
			return "", fmt.Errorf("Time interval '%s' is missing units (add e.g. 's' for seconds)", v)
		}
		ms := uint64(0)
		for _, x := range []struct {
			w string
			m uint64
		}{{"secs", 1000}, {"seconds", 1000}, {"mins", 60000}, {"minutes", 60000}, {"hours", 3600000}, {"days", 86400000}, {"weeks", 604800000}, {"msecs", 1}, {"mseconds", 1}, {"millisecs", 1}, {"milliseconds", 1}} {
			if strings.HasPrefix(x.w, u) && u != "" {
				ms = x.m
				break
			}
		}
		if ms == 0 && n != 0 {
			return "", fmt.Errorf("Invalid time interval: %s", v)
		}
		total := n * ms
		if typ == "time" && total%1000 != 0 {
			return "", fmt.Errorf("Milliseconds not supported for this setting: %s", v)
		}
		if total/1000 > math.MaxUint32 {
			return "", fmt.Errorf("Time interval is too large: %s", v)
		}
		if total == 0 {
			return "0", nil
		}
		if total%1000 != 0 {
			return fmt.Sprintf("%d ms", total), nil
		}
		s := total / 1000
		for _, x := range []struct {
			w string
			m uint64
		}{{"weeks", 604800}, {"days", 86400}, {"hours", 3600}, {"mins", 60}, {"secs", 1}} {
			if s%x.m == 0 {
				return fmt.Sprintf("%d %s", s/x.m, x.w), nil
			}
		}
	}
	return v, nil
}
