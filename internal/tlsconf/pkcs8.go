package tlsconf

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
)

// errPassword: what came out of the decryption is not a key.
var errPassword = errors.New("wrong password")

// maxIterations of PBKDF2: some ten seconds.
const maxIterations = 20_000_000

// decryptPKCS8 opens an EncryptedPrivateKeyInfo (RFC 5958 section 3) that is encrypted
// with PBES2 and PBKDF2 (RFC 8018), as OpenSSL writes them, and returns the PrivateKeyInfo.
func decryptPKCS8(der []byte, password string) ([]byte, error) {
	var info struct {
		Scheme pkix.AlgorithmIdentifier
		Data   []byte
	}
	if err := unmarshal(der, &info); err != nil {
		return nil, err
	}
	if oid := info.Scheme.Algorithm.String(); oid != "1.2.840.113549.1.5.13" {
		return nil, fmt.Errorf("encryption scheme %s is not supported; write it anew with: openssl pkcs8 -topk8 -v2 aes256", oid)
	}
	var pbes2 struct{ KDF, Cipher pkix.AlgorithmIdentifier }
	if err := unmarshal(info.Scheme.Parameters.FullBytes, &pbes2); err != nil {
		return nil, err
	}
	if oid := pbes2.KDF.Algorithm.String(); oid != "1.2.840.113549.1.5.12" {
		return nil, fmt.Errorf("key derivation %s is not supported; write it anew with: openssl pkcs8 -topk8 -v2 aes256", oid)
	}
	var kdf struct {
		Salt       []byte
		Iterations int
		KeyLength  int                      `asn1:"optional"`
		PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
	}
	if err := unmarshal(pbes2.KDF.Parameters.FullBytes, &kdf); err != nil {
		return nil, err
	}
	if kdf.Iterations < 1 || kdf.Iterations > maxIterations {
		return nil, fmt.Errorf("%d iterations of PBKDF2 (want 1 to %d)", kdf.Iterations, maxIterations)
	}
	prf := sha1.New
	if len(kdf.PRF.Algorithm) > 0 {
		switch oid := kdf.PRF.Algorithm.String(); oid {
		case "1.2.840.113549.2.7":
		case "1.2.840.113549.2.8":
			prf = sha256.New224
		case "1.2.840.113549.2.9":
			prf = sha256.New
		case "1.2.840.113549.2.10":
			prf = sha512.New384
		case "1.2.840.113549.2.11":
			prf = sha512.New
		default:
			return nil, fmt.Errorf("PBKDF2 with %s is not supported", oid)
		}
	}
	size, block := 0, aes.NewCipher
	switch oid := pbes2.Cipher.Algorithm.String(); oid {
	case "2.16.840.1.101.3.4.1.2":
		size = 16
	case "2.16.840.1.101.3.4.1.22":
		size = 24
	case "2.16.840.1.101.3.4.1.42":
		size = 32
	case "1.2.840.113549.3.7":
		size, block = 24, des.NewTripleDESCipher
	default:
		return nil, fmt.Errorf("cipher %s is not supported; write it anew with: openssl pkcs8 -topk8 -v2 aes256", oid)
	}
	var iv []byte
	if err := unmarshal(pbes2.Cipher.Parameters.FullBytes, &iv); err != nil {
		return nil, err
	}
	key, err := pbkdf2.Key(func() hash.Hash { return prf() }, password, kdf.Salt, kdf.Iterations, size)
	if err != nil {
		return nil, err
	}
	return decryptCBC(block, key, iv, info.Data)
}

// unmarshal reads one DER value that fills der.
func unmarshal(der []byte, v any) error {
	rest, err := asn1.Unmarshal(der, v)
	if err != nil {
		return fmt.Errorf("it is damaged: %w", err)
	}
	if len(rest) > 0 {
		return errors.New("it is damaged: data after its end")
	}
	return nil
}

// decryptCBC takes off CBC and padding (RFC 8018 section 6.1.1), in place.
func decryptCBC(newCipher func([]byte) (cipher.Block, error), key, iv, data []byte) ([]byte, error) {
	b, err := newCipher(key)
	if err != nil {
		return nil, err
	}
	n := b.BlockSize()
	if len(iv) != n || len(data) == 0 || len(data)%n != 0 {
		return nil, errors.New("it is damaged")
	}
	cipher.NewCBCDecrypter(b, iv).CryptBlocks(data, data)
	pad := int(data[len(data)-1])
	if pad < 1 || pad > n {
		return nil, errPassword
	}
	for _, c := range data[len(data)-pad:] {
		if int(c) != pad {
			return nil, errPassword
		}
	}
	data = data[:len(data)-pad]
	var outer asn1.RawValue
	if rest, err := asn1.Unmarshal(data, &outer); err != nil || len(rest) > 0 {
		return nil, errPassword
	}
	return data, nil
}
