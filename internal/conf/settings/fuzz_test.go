package settings

import "testing"

// FuzzNormalise: what is printed is read back as the same.
func FuzzNormalise(f *testing.F) {
	for _, s := range samples {
		row, _ := Lookup(s.name)
		f.Add(uint8(row.Type), s.value)
	}
	f.Fuzz(func(t *testing.T, typ uint8, v string) {
		ty := Type(typ % uint8(LastType+1))
		once, err := ty.Normalise(v, []string{"a", "b"})
		if err != nil {
			return
		}
		if twice, err := ty.Normalise(once, []string{"a", "b"}); twice != once || err != nil {
			t.Errorf("%v: %q is printed %q, and that %q, %v", ty, v, once, twice, err)
		}
	})
}

func FuzzParseNetworks(f *testing.F) {
	f.Add("10.1, 192.0.2.77/24\t[2001:db8::1]/64,0x7f.1  example.org 1.2.3.4/33 1.2.3.4/ ::1/128 0x 08.1")
	f.Fuzz(func(t *testing.T, s string) {
		nets, errs := ParseNetworks(s)
		if len(nets)+len(errs) != len(Words(s)) {
			t.Errorf("%q: %v %v", s, nets, errs)
		}
	})
}
