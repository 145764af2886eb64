package settings

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Decode fills a T, which is Login, Submission, or a struct like them, from the values
// that get knows, as the config service sends them. What get does not know has the default
// of the table; a *string is nil then. Each error names its setting; its field has the
// default. A field whose setting or Go type the table cannot fill is a mistake in the
// program, and panics.
func Decode[T any](get func(name string) (string, bool)) (T, []error) {
	var v T
	d := decoder{get: get, program: strings.ToLower(reflect.TypeFor[T]().Name())}
	d.fields(reflect.ValueOf(&v).Elem())
	return v, d.errs
}

type decoder struct {
	get     func(string) (string, bool)
	program string
	errs    []error
}

func (d *decoder) fields(v reflect.Value) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			d.fields(v.Field(i))
		} else if name := f.Tag.Get("setting"); name != "" {
			d.field(v.Field(i), name)
		}
	}
}

func (d *decoder) field(f reflect.Value, name string) {
	s := find(name, d.program)
	if s == nil {
		s = findOwn(name)
	}
	if s == nil {
		panic("settings: no row for " + name)
	}
	text, ok := d.get(name)
	if !ok && f.Kind() == reflect.Pointer {
		return
	}
	if ok {
		err := s.store(f, text)
		if err == nil {
			return
		}
		d.errs = append(d.errs, fmt.Errorf("%s: %w", name, err))
	}
	if err := s.store(f, s.Default); err != nil {
		panic("settings: default of " + name + ": " + err.Error())
	}
}

// store puts text as the value of s into f.
func (s *Setting) store(f reflect.Value, text string) error {
	switch p := f.Addr().Interface().(type) {
	case *string:
		v, err := s.Normalise(text)
		if err == nil {
			*p = v
		}
		return err
	case **string:
		*p = &text
		return nil
	case *bool:
		return put(p, text, ParseBool)
	case *uint16:
		return put(p, text, ParsePort)
	case *uint32:
		if s.Type == Octal {
			return put(p, text, ParseOctal)
		}
		return put(p, text, ParseUint)
	case *uint64:
		return put(p, text, ParseSize)
	case *time.Duration:
		if s.Type == MSecs {
			return put(p, text, ParseMSecs)
		}
		return put(p, text, ParseTime)
	}
	panic("settings: " + s.Name + ": no value of Go type " + f.Type().String() + " from type " + s.Type.String())
}

func put[V any](to *V, text string, parse func(string) (V, error)) error {
	v, err := parse(text)
	if err == nil {
		*to = v
	}
	return err
}
