package authclient

func (c *Client) renewing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.other != nil
}
